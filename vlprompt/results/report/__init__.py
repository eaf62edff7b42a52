"""A page of results that needs no network: sections of tables, figures and images, and the files beside it."""
