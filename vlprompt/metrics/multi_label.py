"""Metrics of several labels in one item, in percent; a target is 1, 0, or -1 where it is unknown and left out."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vlprompt.metrics.unknown import aupr

ApRule = Literal["all_points", "voc2007", "voc2010"]


def average_precisions(scores: Tensor, targets: Tensor, rule: ApRule = "all_points") -> Tensor:
    """Return the average precision (C,) of each class; nan for a class that is never positive.

    Args:
        scores: (N, C), high for present. Equal scores are one threshold.
        targets: (N, C) of 1, 0 and -1; items whose target is unknown leave the ranking of that class.
        rule: "all_points" sums over thresholds the recall gained times the precision (as scikit-learn; without equal
            scores also the codes of ASL, ML-GCN and DualCoOp, and what they call mAP on VOC2007); "voc2007" is the mean
            over the recalls 0, .1, ..., 1 of the best precision at this recall or more (Everingham et al., IJCV 2010;
            steps as numpy adds them up, so that a recall of .3 is below .30000000000000004, as in py-faster-rcnn);
            "voc2010" the area under the highest precision at each recall or more.

    Raises:
        ValueError: for other shapes, no items, NaN, or targets that are none of 1, 0 and -1.
    """
    require_targets(scores, targets)
    values = [
        _average_precision(score[target >= 0], target[target >= 0], rule)
        for score, target in zip(scores.double().T, targets.T, strict=True)
    ]
    return torch.tensor(values, dtype=torch.double)


def _average_precision(scores: Tensor, targets: Tensor, rule: ApRule) -> float:
    positive, negative = scores[targets == 1], scores[targets == 0]
    if not len(positive):
        return float("nan")
    if rule == "all_points":
        return aupr(positive, negative) if len(negative) else 100.0
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(targets.numpy(), scores.numpy())
    precision, recall = precision[-2::-1], recall[-2::-1]  # from the strictest threshold on, without the end (1, 0)
    highest = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or more
    if rule == "voc2010":
        return 100 * float((np.diff(recall, prepend=0) * highest).sum())
    reached = [highest[recall >= t] for t in np.arange(0.0, 1.1, 0.1)]
    return 100 * sum(float(part[0]) if len(part) else 0.0 for part in reached) / 11


def mean_average_precision(
    scores: Tensor, targets: Tensor, rule: ApRule = "all_points", absent: Literal["left_out", "zero"] = "left_out"
) -> float:
    """Return the mean of `average_precisions` over classes.

    Args:
        scores: as in `average_precisions`.
        targets: as in `average_precisions`.
        rule: as in `average_precisions`.
        absent: what a class that is never positive counts: nothing, or 0 as in DualCoOp's, TaI-DPT's and ASL's codes.

    Raises:
        ValueError: where no class is ever positive, and as `average_precisions`.
    """
    values = average_precisions(scores, targets, rule)
    if bool(values.isnan().all()):
        raise ValueError("targets: expected a class that is positive somewhere, got none. Take items with labels.")
    return values.nan_to_num(0.0).mean().item() if absent == "zero" else values.nanmean().item()


def select_labels(scores: Tensor, threshold: float | None = 0.5, top_k: int | None = None) -> Tensor:
    """Return the labels (N, C) that are predicted.

    Args:
        scores: (N, C), such as probabilities.
        threshold: that a score must exceed, as in DualCoOp's code (in ML-GCN's it is enough); None for none.
        top_k: the greatest number of labels an item, those of the highest scores, of equal ones the first
            classes; with threshold None exactly this number, as F1@k of zero-shot work has it.
    """
    chosen = torch.ones_like(scores, dtype=torch.bool) if threshold is None else scores > threshold
    if top_k is None:
        return chosen
    top = scores.argsort(dim=1, descending=True, stable=True)[:, :top_k]
    return chosen & torch.zeros_like(chosen).scatter_(1, top, True)


def label_scores(predicted: Tensor, targets: Tensor) -> dict[str, float]:
    """Return precision, recall and F1 of predicted labels, by class and over all; 0 where they are 0 / 0.

    Args:
        predicted: (N, C) whether each label is predicted.
        targets: (N, C) of 1, 0 and -1.

    Returns:
        CP, CR (means over all classes), CF1 = 2 CP CR / (CP + CR) (Chen et al., "ML-GCN", CVPR 2019, arXiv:1904.03582),
        CF1_mean = the mean over classes of F1 (DualCoOp's code, arXiv:2206.09541), OP, OR, OF1 (of all labels counted
        together; ML-GCN's code counts a class that is never predicted as predicted once, wrongly, which is not done).
    """
    require_targets(predicted.double(), targets)
    is_label, predicted = targets == 1, predicted.bool() & (targets >= 0)
    n_right, n_predicted, n_labels = (x.sum(0).double() for x in (is_label & predicted, predicted, is_label))
    precision, recall = n_right / n_predicted.clamp(min=1), n_right / n_labels.clamp(min=1)
    f1 = 2 * n_right / (n_predicted + n_labels).clamp(min=1)
    cp, cr = precision.mean().item(), recall.mean().item()
    op = (n_right.sum() / n_predicted.sum().clamp(min=1)).item()
    overall = (n_right.sum() / n_labels.sum().clamp(min=1)).item()
    of1 = (2 * n_right.sum() / (n_predicted.sum() + n_labels.sum()).clamp(min=1)).item()
    cf1 = 2 * cp * cr / (cp + cr) if cp + cr else 0.0
    shares = {"CP": cp, "CR": cr, "CF1": cf1, "CF1_mean": f1.mean().item(), "OP": op, "OR": overall, "OF1": of1}
    return {name: 100 * value for name, value in shares.items()}


def require_targets(scores: Tensor, targets: Tensor) -> None:
    """Raise ValueError for scores and targets of several labels that can't be scored."""
    if scores.shape != targets.shape or scores.ndim != 2 or not len(scores):
        raise ValueError(
            f"targets: expected one for each score of at least one item, (N, C), got {tuple(targets.shape)} for scores "
            f"{tuple(scores.shape)}. Give both for the same items and classes."
        )
    if bool(((targets != 1) & (targets != 0) & (targets != -1)).any()):
        wrong = targets[(targets != 1) & (targets != 0) & (targets != -1)]
        raise ValueError(f"targets: expected 1, 0 or -1 (unknown), got {wrong[0].item():g}. Correct them.")
    if n_nan := int(scores.isnan().sum()):
        raise ValueError(f"scores: expected numbers, got {n_nan} NaN. Check the backbone's weights.")
