"""Model cards: what a shared prompt is, what it was learned on, its numbers, and what was not tested."""
