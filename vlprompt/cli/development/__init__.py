"""Commands for methods of one's own."""
