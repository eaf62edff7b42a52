"""Entropies of answers, of their neighbourhoods, and of the use of prompts; no labels are needed."""

import torch
from torch import Tensor


def entropy(p: Tensor) -> Tensor:
    """Return the entropy in nats, (..., C) -> (...)."""
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(-1)


def effective_prompts(usage: Tensor) -> float:
    """Return the effective number of M prompts: exp of the entropy of their usage (M,), between 1 and M."""
    p = usage.double() / usage.double().sum()
    return float((-p * p.clamp(min=1e-300).log()).sum().exp())


def neighbourhood_density(probabilities: Tensor, temperature: float = 0.05, chunk_size: int = 1000) -> float:
    """Return the soft neighbourhood density of N answers, in nats: higher if each has many near neighbours.

    The mean entropy of each answer's softmax over its cosines with all others (Saito et al., ICCV 2021,
    arXiv:2108.10860).

    Args:
        probabilities: (N, C).
        temperature: of the softmax.
        chunk_size: answers that are compared at a time.
    """
    if len(probabilities) == 1:
        return 0.0
    p = probabilities / probabilities.norm(dim=1, keepdim=True)
    total = 0.0
    for begin in range(0, len(p), chunk_size):
        similarity = p[begin : begin + chunk_size] @ p.T / temperature
        similarity.diagonal(begin).fill_(-float("inf"))  # an answer is no neighbour of itself
        q = similarity.softmax(1)
        total += float(-(q * q.clamp(min=torch.finfo(q.dtype).tiny).log()).sum(1).double().sum())
    return total / len(p)
