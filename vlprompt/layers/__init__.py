"""Frozen maths and trainable parts of methods and towers."""
