"""Losses of items that may have several labels, some of them unknown, and how logits are read as their odds."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import UNKNOWN, Reading

Kind = Literal["bce", "partial_bce", "asl"]
UnknownUse = Literal["ignore", "negative"]


def read_odds(logits: Tensor, reading: Reading) -> Tensor:
    """Return the logarithms of the odds (B, C) of each label.

    Args:
        logits: (B, C).
        reading: "sigmoid" takes them as they are; "contrastive" takes the softmax over the classes as the probability
            of each, as CLIP was trained: a logit less the logarithm of the sum of exp of the others.
    """
    if reading == "sigmoid":
        return logits
    # without (B, C, C): the sum of the others is the whole less the class's own share, at most half but for the largest
    is_largest = torch.arange(logits.shape[1], device=logits.device) == logits.argmax(1, keepdim=True)
    others = logits.masked_fill(is_largest, -torch.inf)
    second = others.detach().amax(1, keepdim=True)
    odds_of_largest = logits - second - (others - second).exp().sum(1, keepdim=True).log()
    shifted = logits - logits.detach().amax(1, keepdim=True)
    shares = shifted.softmax(1).masked_fill(is_largest, 0.0)
    return torch.where(is_largest, odds_of_largest, shifted - shifted.logsumexp(1, keepdim=True) - (-shares).log1p())


@dataclass(frozen=True)
class SeveralLabelLoss:
    """A loss of logits (B, C) against labels (B, C) of 1, 0 and -1 (unknown): one number an item, a mean over items.

    What is unknown takes no part, unless it is negative; an item of which nothing is known counts 0.

    Args:
        kind: "bce" is the binary cross-entropy of the known entries of an item, summed and divided by C. "partial_bce"
            divides by the number of those that are known instead (g(p) = 1 and g(p) = 1 / p of Durand et al., CVPR
            2019, arXiv:1902.09720). "asl" is the asymmetric loss (Ridnik et al., ICCV 2021, arXiv:2009.14119), summed
            over the known entries.
        unknown: "ignore" leaves unknown entries out; "negative" takes them as absent.
        gammas: of asl, the focusing of present and of absent entries.
        margin: of asl, added to the probability of being absent.
        reading: of the logits.
        epsilon: of asl, the least probability in a logarithm.
    """

    kind: Kind = "bce"
    unknown: UnknownUse = "ignore"
    gammas: tuple[float, float] = (1.0, 2.0)
    margin: float = 0.05
    reading: Reading = "sigmoid"
    epsilon: float = 1e-6

    def __call__(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Return the loss; reduction as in F.cross_entropy, "none" for one loss per item."""
        odds = read_odds(logits, self.reading)
        if self.unknown == "negative":
            labels = labels.clamp(min=0)
        known = labels != UNKNOWN
        if self.kind == "asl":
            rows = (self._compute_asymmetric(odds, labels) * known).sum(1)
        else:
            entries = F.binary_cross_entropy_with_logits(odds, labels.clamp(min=0).to(odds.dtype), reduction="none")
            divisor = known.sum(1).clamp(min=1) if self.kind == "partial_bce" else odds.shape[1]
            rows = (entries * known).sum(1) / divisor
        return rows if reduction == "none" else rows.mean()

    def _compute_asymmetric(self, odds: Tensor, labels: Tensor) -> Tensor:
        """Return the losses (B, C); the weights of focusing have no gradient, as in the authors' codes."""
        present = odds.sigmoid()
        absent = (1 - present + self.margin).clamp(max=1)
        is_present = labels == 1
        p = torch.where(is_present, present, absent)
        gamma = torch.where(is_present, *self.gammas)
        focus = (1 - p.detach()) ** gamma
        return -focus * p.clamp(min=self.epsilon).log()


def compute_ranking_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean over items of the sum, over pairs of a present and an absent label, of max(0, 1 - s + s').

    Args:
        scores: (B, C).
        labels: (B, C) of 1, 0 and -1; what is unknown is in no pair.
    """
    margins = (1 - scores[:, :, None] + scores[:, None, :]).relu()  # (B, present, absent)
    pairs = (labels == 1)[:, :, None] & (labels == 0)[:, None, :]
    return (margins * pairs).sum((1, 2)).mean()
