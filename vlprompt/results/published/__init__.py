"""Published numbers, and how a run compares with them."""
