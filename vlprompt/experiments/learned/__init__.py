"""Learned prompts: read from run folders and model folders, restored on their backbones, ready to answer."""
