"""Pictures of what was learned, drawn from arrays."""
