"""Scores of items with several labels, and the threshold that is chosen on validation items.

Targets are 1, 0 and -1; entries that are unknown take no part.
"""

import torch
from torch import Tensor

from vlprompt.core.batch import UNKNOWN, Split
from vlprompt.layers.label_losses.several_labels import read_odds
from vlprompt.metrics import label_scores, mean_average_precision, select_labels
from vlprompt.metrics.catalogue import METRICS

DEFAULT_THRESHOLD = 0.0  # a label is predicted where its odds exceed it: where its probability exceeds a half
SUMMARY = ("mAP", "CF1", "OF1", "CP", "CR", "CF1_mean", "OP", "OR")
LABEL_METRICS = {  # of items with several labels
    **{name: METRICS["several labels"][name].definition for name in SUMMARY},
    "threshold": "logarithm of the odds above which a label is predicted: that of the best OF1 on validation images, 0 "
    "without any; no percentage",
}


def score_labels(odds: Tensor, targets: Tensor, threshold: float = DEFAULT_THRESHOLD) -> dict[str, float]:
    """Return the metrics of LABEL_METRICS for odds (N, C), as logarithms, and targets (N, C)."""
    scores = label_scores(is_label(odds, threshold), targets)
    values = {"mAP": mean_average_precision(odds, targets), **scores, "threshold": threshold}
    return {name: values[name] for name in LABEL_METRICS}


def is_label(odds: Tensor, threshold: float = DEFAULT_THRESHOLD) -> Tensor:
    """Return which labels (N, C) are predicted: those whose odds exceed the threshold, both as logarithms."""
    return select_labels(odds.double(), threshold)


def choose_threshold(odds: Tensor, targets: Tensor) -> float:
    """Return the threshold with the best OF1 on validation items: halfway between the two odds around it.

    Of equally good ones it is the strictest; DEFAULT_THRESHOLD where there is no positive entry.
    """
    known = targets != UNKNOWN
    z, order = odds[known].double().sort(descending=True)
    is_present = (targets[known] == 1)[order].double()
    if not bool(is_present.any()):
        return DEFAULT_THRESHOLD
    n_predicted = torch.arange(1, len(z) + 1, dtype=torch.double)
    f1 = 2 * is_present.cumsum(0) / (n_predicted + is_present.sum())
    is_cut = torch.cat([z[1:] < z[:-1], torch.tensor([True])])  # no threshold parts equal odds
    best = int(torch.where(is_cut, f1, -1.0).argmax())
    lower = z[best + 1] if best + 1 < len(z) else z[best] - 1
    return ((z[best] + lower) / 2).item()


def read_label_odds(logits: Tensor, split: Split) -> tuple[Tensor, Tensor]:
    """Return the odds (N, C) of a split's labels, as logarithms, and the targets (N, C)."""
    return read_odds(logits, split.reading), torch.tensor(split.labels)
