"""Towers that walk block by block, and those that can only be called as they are."""
