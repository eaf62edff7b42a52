"""Searches of settings on validation images: a grid, or values that a sampler proposes."""
