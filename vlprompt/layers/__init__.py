"""Frozen maths and trainable parts that methods and towers are made of."""
