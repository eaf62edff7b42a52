"""Features of frozen towers, in memory and on the disk."""
