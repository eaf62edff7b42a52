"""Losses of labels, which methods call as they would F.cross_entropy."""

import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import LabelLoss


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


class WatchedLoss:
    """A loss of labels that remembers whether a method has asked for it.

    Args:
        label_loss: the loss.
    """

    def __init__(self, label_loss: LabelLoss):
        self.label_loss, self.is_used = label_loss, False

    def __call__(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        self.is_used = True
        return self.label_loss(logits, labels, reduction=reduction)

    def require_use(self, setting: str, method: str) -> None:
        """Raise ValueError where a method has learned without it, so that the setting would change nothing."""
        if not self.is_used:
            raise ValueError(
                f"{setting}: expected a method that learns from labels by cross-entropy, got {method}, which does not. "
                "Leave it out, or take another method."
            )
