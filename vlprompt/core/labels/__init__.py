"""Labels of items that may have several, and their losses."""
