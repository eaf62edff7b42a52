"""Images as values: how a tower wants its pixels, augmented views, items that can be decoded, batches of them."""

import hashlib

import torch


def number(*key: object) -> int:
    """A 63-bit number from any key, the same in every process: where all random streams start."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def generator(*key: object) -> torch.Generator:
    return torch.Generator().manual_seed(number(*key))
