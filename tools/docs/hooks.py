"""Hooks of the site's build: pages that are generated from the code, and links from a page to files of the repository."""
