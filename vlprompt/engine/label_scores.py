"""Scores of items with several labels, and the threshold that is chosen on validation items.

Targets are 1, 0 and -1; entries that are unknown take no part.
"""

import torch
from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.labels.label_loss import UNKNOWN

DEFAULT_THRESHOLD = 0.0  # a label is predicted where its logit exceeds it: where its probability exceeds a half
LABEL_METRICS = {  # of items with several labels
    "mAP": "mean over classes of the average precision, at all points, not interpolated; a class that is never "
    "positive is left out",
    "CF1": "harmonic mean of CP and CR",
    "OF1": "F1 of all labels counted together",
    "CP": "mean over classes of the precision; 0 for a class that is never predicted rightly",
    "CR": "mean over classes of the recall",
    "CF1_mean": "mean over classes of F1, which DualCoOp's code calls CF1",
    "OP": "precision of all labels counted together",
    "OR": "recall of all labels counted together",
    "threshold": "logit above which a label is predicted: that of the best OF1 on validation images, 0 without any; no "
    "percentage",
}


def average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the average precision (C,) of each class in percent; nan for a class that is never positive.

    Args:
        scores: (N, C), high for present; equal scores are one threshold.
        targets: (N, C) of 1, 0 and -1.
    """
    from sklearn.metrics import average_precision_score

    values = []
    for score, target in zip(scores.double().T, targets.T, strict=True):
        known = target != UNKNOWN
        has_positive = bool((target == 1).any())
        ap = average_precision_score(target[known].numpy(), score[known].numpy()) if has_positive else float("nan")
        values.append(100 * float(ap))
    return torch.tensor(values, dtype=torch.double)


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Return the mean of `average_precisions` over the classes that are positive somewhere.

    Raises:
        ValueError: where no class is.
    """
    values = average_precisions(scores, targets)
    if bool(values.isnan().all()):
        raise ValueError("labels: expected a class that is positive somewhere, got none. Take items with labels.")
    return values.nanmean().item()


def score_labels(logits: Tensor, targets: Tensor, threshold: float = DEFAULT_THRESHOLD) -> dict[str, float]:
    """Return the metrics of LABEL_METRICS for logits (N, C) and targets (N, C); probabilities may round to one."""
    is_label, predicted = targets == 1, (logits > threshold) & (targets != UNKNOWN)
    n_right, n_predicted, n_labels = (x.sum(0).double() for x in (is_label & predicted, predicted, is_label))
    cp = (n_right / n_predicted.clamp(min=1)).mean().item()
    cr = (n_right / n_labels.clamp(min=1)).mean().item()
    shares = {
        "CF1": 2 * cp * cr / (cp + cr) if cp + cr else 0.0,
        "OF1": (2 * n_right.sum() / (n_predicted.sum() + n_labels.sum()).clamp(min=1)).item(),
        "CP": cp,
        "CR": cr,
        "CF1_mean": (2 * n_right / (n_predicted + n_labels).clamp(min=1)).mean().item(),
        "OP": (n_right.sum() / n_predicted.sum().clamp(min=1)).item(),
        "OR": (n_right.sum() / n_labels.sum().clamp(min=1)).item(),
    }
    percentages = {name: 100 * share for name, share in shares.items()}
    return {"mAP": mean_average_precision(logits, targets), **percentages, "threshold": threshold}


def choose_threshold(logits: Tensor, targets: Tensor) -> float:
    """Return the threshold with the best OF1 on validation items: halfway between the two logits around it.

    Of equally good ones it is the strictest; DEFAULT_THRESHOLD where there is no positive entry.
    """
    known = targets != UNKNOWN
    z, order = logits[known].double().sort(descending=True)
    is_label = (targets[known] == 1)[order].double()
    if not bool(is_label.any()):
        return DEFAULT_THRESHOLD
    n_predicted = torch.arange(1, len(z) + 1, dtype=torch.double)
    f1 = 2 * is_label.cumsum(0) / (n_predicted + is_label.sum())
    is_cut = torch.cat([z[1:] < z[:-1], torch.tensor([True])])  # no threshold parts equal logits
    best = int(torch.where(is_cut, f1, -1.0).argmax())
    lower = z[best + 1] if best + 1 < len(z) else z[best] - 1
    return ((z[best] + lower) / 2).item()


def label_rows(split: Split) -> Tensor:
    """Return the labels (N, C) of a split whose items may have several."""
    return torch.tensor(split.labels)
