"""Passes of frozen decoders of the Llama kind, layer by layer: packed texts, and greedy generation."""
