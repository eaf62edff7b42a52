"""The threshold of a score below which an item is answered `unknown`."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from torch import Tensor


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

    For coverage: the largest threshold that accepts at least this share of the known, which is the k-th largest of
    their scores, k the share times their number, rounded up. Items with the same score are accepted together, so
    that ties raise the coverage. For a false-positive rate: the smallest threshold in float64 that accepts at most this
    share of the unknown, which is the next number above the (k + 1)-th largest of their scores, k rounded down.

    Args:
        rejection: what to choose it for.
        known: scores (N,) of known items, float64.
        unknown: scores (M,) of unknown items, for a false-positive rate.
    """
    scores = known if rejection.kind == "coverage" else unknown
    assert scores is not None
    order, wanted = scores.sort(descending=True).values, rejection.share * len(scores)
    if rejection.kind == "coverage":
        return float(order[math.ceil(wanted) - 1])
    return math.nextafter(float(order[math.floor(wanted)]), math.inf)
