"""Pages of the reference that are tables: each is made from the definitions in the code."""
