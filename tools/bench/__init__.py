"""Benchmarks of speed and memory against a reference implementation: one file per table."""
