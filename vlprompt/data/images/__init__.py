"""Decoding, augmentation and caching of images."""
