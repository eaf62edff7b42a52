"""Losses of items that have one label each."""

import torch.nn.functional as F
from torch import Tensor


def generalised_cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean", q: float = 0.7) -> Tensor:
    """Compute (1 - p^q) / q of the probability p of each label (Zhang and Sabuncu, NeurIPS 2018, arXiv:1805.07836).

    Between cross-entropy, its limit for q to 0, and 1 - p, the mean absolute error up to a factor, at q = 1: the less
    probable a label is, the less is learned from it.

    Args:
        logits: (B, C).
        labels: (B,).
        reduction: "mean", or "none" for one loss per row.
        q: above 0 and at most 1.
    """
    rows = -(-q * F.cross_entropy(logits, labels, reduction="none")).expm1() / q
    return rows if reduction == "none" else rows.mean()
