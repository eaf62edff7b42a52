"""Metrics of scores that tell known items from unknown ones; a score is high for what is known."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

UNKNOWN_METRICS = {  # of scores, high for known; known items against unknown ones
    "auroc": "probability that a known item has a higher score than an unknown one, plus half that of equal scores",
    "fpr95": "share of the unknown accepted at the threshold whose share of the known accepted is closest to 95 %, of "
    "equals the loosest (Outlier Exposure's, MCM's and LoCoOp's codes); it may accept fewer than 95 % of the known",
    "fpr95_at_least": "share of the unknown accepted at the strictest threshold that accepts 95 % of the known or more",
    "aupr_in": "area under precision and recall, known positive, summed over distinct thresholds without interpolation",
    "aupr_out": "the same, unknown positive, scores negated",
}
REJECTION_METRICS = {  # where a threshold was chosen
    "coverage": "share of the test items that are accepted, so not answered `unknown`",
    "accepted_accuracy": "share right of those that are accepted",
    "unknown_accepted": "share of the items of `--unknown` that are accepted",
}


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Return the area under the ROC curve in percent: P(known > unknown) + 1/2 P(known = unknown).

    Args:
        known: scores (N,) of items of known classes, high for known.
        unknown: scores (M,) of items of unknown classes.

    Raises:
        ValueError: for no scores, and for scores that are NaN.
    """
    known, unknown = _require_scores(known, unknown)
    order = unknown.sort().values
    below, up_to = (torch.searchsorted(order, known, right=right) for right in (False, True))
    return 100 * int((below + up_to).sum()) / (2 * len(known) * len(unknown))


def aupr(known: Tensor, unknown: Tensor) -> float:
    """Return the area under the precision-recall curve in percent, known positive (AUPR-in); arguments as in `auroc`.

    The sum over distinct thresholds of the recall gained times the precision, without interpolation. AUPR-out, unknown
    positive, is `aupr(-unknown, -known)`.
    """
    n_known, n_unknown = _count_accepted(known, unknown)
    gained = n_known.diff(prepend=torch.zeros(1, dtype=torch.double))
    return 100 * (gained * n_known / (n_known + n_unknown)).sum().item() / n_known[-1].item()


def fpr_at_recall(known: Tensor, unknown: Tensor, recall: float = 0.95, closest: bool = True) -> float:
    """Return the percentage of unknown items accepted where this share of the known is; arguments as in `auroc`.

    Args:
        known: as in `auroc`.
        unknown: as in `auroc`.
        recall: share of the known that is to be accepted.
        closest: True for the threshold whose recall is closest, from the loosest that matters (the strictest that
            accepts all known) to ever stricter ones, the first of equals: recall may be below. So do the codes of
            Outlier Exposure, MCM and LoCoOp. False for the strictest threshold with at least this recall, as OpenOOD.
    """
    n_known, n_unknown = _count_accepted(known, unknown)
    reached, accepted = n_known / n_known[-1], n_unknown / len(unknown)
    if not closest:
        return 100 * accepted[int((reached >= recall).nonzero()[0])].item()
    end = int((reached == 1).nonzero()[0]) + 1
    return 100 * accepted[:end].flip(0)[int((reached[:end].flip(0) - recall).abs().argmin())].item()


def fpr_unknown_positive(known: Tensor, unknown: Tensor, recall: float = 0.95) -> float:
    """Return the percentage of known items rejected where at least this share of the unknown is, as in `auroc`.

    FPR with the unknown positive: the roles of the two sides are exchanged, the threshold is the strictest on them.
    """
    return fpr_at_recall(-unknown, -known, recall, closest=False)


def roc_curve(known: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Return the percentages of the known and of the unknown accepted; arguments as in `auroc`.

    Returns:
        Of the known and of the unknown, each (K + 1,) for K distinct scores: from a threshold that accepts nothing to
        the one that accepts everything. The area below the first over the second, by trapezoids, is `auroc`.
    """
    n_known, n_unknown = _count_accepted(known, unknown)
    start = torch.zeros(1, dtype=torch.double)
    return torch.cat([start, 100 * n_known / n_known[-1]]), torch.cat([start, 100 * n_unknown / n_unknown[-1]])


def unknown_scores(known: Tensor, unknown: Tensor) -> dict[str, float]:
    """Return the metrics of `UNKNOWN_METRICS`; arguments as in `auroc`."""
    return {name: compute(known, unknown) for name, compute in UNKNOWN_FUNCTIONS.items()}


def _count_accepted(known: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Known and unknown items accepted (score >= threshold) at each distinct threshold, from the strictest on."""
    known, unknown = _require_scores(known, unknown)
    scores, order = torch.cat([known, unknown]).sort(descending=True)
    n_known = (order < len(known)).double().cumsum(0)
    is_last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])
    n_accepted = torch.arange(1, len(scores) + 1, dtype=torch.double)
    return n_known[is_last], (n_accepted - n_known)[is_last]


def _require_scores(known: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    for name, scores in (("known", known), ("unknown", unknown)):
        if not len(scores):
            raise ValueError(f"{name}: expected the scores of at least one item, got none. Take a split with items.")
        if n_nan := int(scores.isnan().sum()):
            raise ValueError(
                f"{name}: expected scores that are numbers, got {n_nan} NaN. Check the backbone's weights."
            )
    return known.double().contiguous(), unknown.double().contiguous()


UNKNOWN_FUNCTIONS: Mapping[str, Callable[[Tensor, Tensor], float]] = {  # of the known and the unknown scores
    "auroc": auroc,
    "fpr95": fpr_at_recall,
    "fpr95_at_least": partial(fpr_at_recall, closest=False),
    "aupr_in": aupr,
    "aupr_out": lambda known, unknown: aupr(-unknown, -known),
}
