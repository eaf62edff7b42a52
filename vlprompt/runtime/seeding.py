"""Seeds and random generators from keys, the same in every process."""

import hashlib

import torch


def derive_seed(*key: object) -> int:
    """Hash any key to a 63-bit seed, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def make_generator(*key: object) -> torch.Generator:
    """Return a generator seeded by a key."""
    return torch.Generator().manual_seed(derive_seed(*key))
