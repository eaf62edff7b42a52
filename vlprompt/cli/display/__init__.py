"""What the command line shows: tables, progress and predictions. rich is imported here and in the commands alone."""
