"""Seeds and random generators from keys, the same in every process."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def derive_seed(*key: object) -> int:
    """Hash any key to a 63-bit seed, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def make_generator(*key: object) -> torch.Generator:
    """Return a generator seeded by a key."""
    return torch.Generator().manual_seed(derive_seed(*key))


def capture_random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's own streams of random numbers, that of a GPU too if the device is one."""
    states = {"random/cpu": torch.get_rng_state()}
    return states | ({"random/cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what `capture_random_states` returned, on this machine or another; other entries are left alone."""
    torch.set_rng_state(states["random/cpu"].cpu())
    if "random/cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["random/cuda"].cpu(), device)
