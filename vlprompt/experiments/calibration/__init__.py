"""Temperature and threshold of a learned prompt, chosen on validation items, and tests against unknown classes."""
