"""Rendered digits, letters and symbols: what the embedded CLIP learned from, and a dataset of their own."""
