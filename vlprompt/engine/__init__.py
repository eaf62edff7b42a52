"""Training and evaluation: settings, the loop, and what a step is made of."""
