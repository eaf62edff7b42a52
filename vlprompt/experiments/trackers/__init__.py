"""Copies of what runs report, for the trackers that people look at; one file each."""
