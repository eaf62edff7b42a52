"""Speed and memory against the written-out form: one file per table."""
