"""The threshold of a score below which an item is answered `unknown`."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from torch import Tensor

SLACK = 1e-5  # above the rounding of float32 logits


@dataclass(frozen=True)
class Rejection:
    """What a threshold is chosen for.

    Args:
        kind: "coverage", the share of known items that are accepted at least, or "fpr", the share of unknown items
            that are accepted at most.
        share: that share, exactly as it was written.
    """

    kind: Literal["coverage", "fpr"]
    share: Fraction


def parse_rejection(text: str | float) -> Rejection:
    """Parse "0.95" (coverage) or "fpr=0.05"; ValueError for anything else."""
    name, separator, number = str(text).rpartition("=")
    try:
        share = Fraction(number.strip())
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    is_coverage = not separator
    fits = 0 < share <= 1 if is_coverage else name.strip() == "fpr" and 0 <= share < 1
    if not fits:
        raise ValueError(
            "--reject: expected the share of known items to accept (0.95), or the share of unknown items to accept at "
            f"most (fpr=0.05), got {text!r}. Write one of these."
        )
    return Rejection("coverage" if is_coverage else "fpr", share)


def choose_threshold(rejection: Rejection, known: Tensor, unknown: Tensor | None) -> float:
    """Return the threshold; an item is accepted if its score is not below it.

    It stands halfway between the two scores that it parts, since scores change in their last bits with the size of a
    batch; where it parts none, below the lowest or above the highest, by SLACK of it (at least SLACK).
    For coverage: it accepts the k highest of the known scores, k the share times their number, rounded up; items with
    the same score are accepted together, so that ties raise the coverage. For a false-positive rate: it rejects the
    (k + 1)-th highest of the unknown scores and all below, k the share times their number, rounded down.

    Args:
        rejection: what to choose it for.
        known: scores (N,) of known items, float64.
        unknown: scores (M,) of unknown items, for a false-positive rate.
    """
    scores = known if rejection.kind == "coverage" else unknown
    assert scores is not None
    order, wanted = scores.sort(descending=True).values, rejection.share * len(scores)
    accepts = rejection.kind == "coverage"
    edge = float(order[math.ceil(wanted) - 1 if accepts else math.floor(wanted)])
    beyond = order[order < edge] if accepts else order[order > edge].flip(0)
    slack = SLACK * max(1.0, abs(edge))
    return (edge + float(beyond[0])) / 2 if len(beyond) else edge - slack if accepts else edge + slack
