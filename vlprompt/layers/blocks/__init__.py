"""Blocks of transformers: the walk through them, attention, texts that share a prefix, recorded passes."""
