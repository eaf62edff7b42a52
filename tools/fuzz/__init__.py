"""Property-based fuzz of the command line."""
