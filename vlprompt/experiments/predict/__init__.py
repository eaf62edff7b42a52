"""Predict images and texts by learned prompts."""
