"""The adapter of open_clip."""
