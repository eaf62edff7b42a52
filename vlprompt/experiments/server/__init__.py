"""A server that answers by learned prompts: HTTP routes, dynamic batching, limits, and a page."""
