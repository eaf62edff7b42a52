"""Losses of labels (B, C) of 1, 0 and -1, where an item may have several of them and some are unknown."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

UNKNOWN = -1  # in a row of labels, beside 1 (present) and 0 (absent)
LossKind = Literal["bce", "partial_bce", "asl"]
UnknownUse = Literal["ignore", "negative"]
Reading = Literal["sigmoid", "contrastive"]
CHOICES = {"kind": get_args(LossKind), "unknown": get_args(UnknownUse), "reading": get_args(Reading)}


@dataclass(frozen=True)
class LabelLoss:
    """A loss of logits (B, C) against labels, and how these logits are read as the odds of each label.

    What is unknown takes no part, unless it is negative.

    Args:
        kind: "bce" is the mean binary cross-entropy of the known entries. "partial_bce" divides it in each item by the
            share of its entries that are known, and takes the mean over items (g = 1 / p; Durand et al., CVPR 2019,
            arXiv:1902.09720, with alpha = 1, beta = 0, gamma = -1). "asl" is the asymmetric loss (Ridnik et al., ICCV
            2021, arXiv:2009.14119), summed over the entries of an item, a mean over items.
        unknown: "ignore" leaves unknown entries out; "negative" takes them as absent.
        gamma_positive: of asl, the focusing of present entries.
        gamma_negative: of asl, that of absent ones.
        margin: of asl, added to the probability of being absent.
        weight: by which the loss is multiplied.
        epsilon: of asl, the least probability in a logarithm.
        reading: "sigmoid" reads logits as they are; "contrastive" reads the softmax over the classes as the probability
            of each, as CLIP was trained: a logit less the logarithm of the sum of exp of the others.

    Raises:
        ValueError: for a value out of its range.
    """

    kind: LossKind = "bce"
    unknown: UnknownUse = "ignore"
    gamma_positive: float = 1.0
    gamma_negative: float = 2.0
    margin: float = 0.05
    weight: float = 1.0
    epsilon: float = 1e-6
    reading: Reading = "sigmoid"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"loss.{name}: expected {', '.join(choices)}, got {value!r}. Set one of them.")
        for name in ("gamma_positive", "gamma_negative", "margin", "weight", "epsilon"):
            if not (value := getattr(self, name)) >= 0:
                raise ValueError(f"loss.{name}: expected at least 0, got {value}. Set a larger value.")

    def read(self, logits: Tensor) -> Tensor:
        """Return the logarithms of the odds (B, C) of each label."""
        if self.reading == "sigmoid":
            return logits
        n_classes = logits.shape[1]
        others = logits[:, None].expand(-1, n_classes, -1)  # (B, C, C), each row without its own class
        itself = torch.eye(n_classes, dtype=torch.bool, device=logits.device)
        return logits - others.masked_fill(itself, -torch.inf).logsumexp(2)

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Return the loss as a mean, with the number of rows it is over: entries of bce, else items."""
        logits, labels = self.read(logits.float()), labels.to(logits.device)
        if self.unknown == "negative":
            labels = labels.clamp(min=0)
        known, n_items = labels != UNKNOWN, len(labels)
        if self.kind == "asl":
            return self.weight * (self._asymmetric(logits, labels) * known).sum() / max(n_items, 1), n_items
        losses = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).to(logits.dtype), reduction="none")
        losses = losses * known
        if self.kind == "bce":
            n_known = int(known.sum())
            return self.weight * losses.sum() / max(n_known, 1), n_known
        return self.weight * (losses.sum(1) / known.sum(1).clamp(min=1)).sum() / max(n_items, 1), n_items

    def _asymmetric(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the losses (B, C); the weights of focusing have no gradient, as in the authors' codes."""
        present = logits.sigmoid()
        absent = (1 - present + self.margin).clamp(max=1)
        is_present = labels == 1
        p = torch.where(is_present, present, absent)
        gamma = torch.where(is_present, self.gamma_positive, self.gamma_negative)
        focus = (1 - p.detach()) ** gamma
        return -focus * p.clamp(min=self.epsilon).log()


DEFAULT_LABEL_LOSS = LabelLoss()
