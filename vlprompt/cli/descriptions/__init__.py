"""The command that writes class descriptions."""
