"""The commands that find words for classes: descriptions, and attributes."""
