"""What a report shows of a folder of runs."""
