"""Export learned prompts to the formats of other programs."""
