"""One folder per run: what is written there, tables over many, and plots."""
