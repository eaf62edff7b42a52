"""The command line: one file per command, shared options in one. Nothing heavy is imported before a command runs."""
