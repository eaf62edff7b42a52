"""The commands that share a learned prompt."""
