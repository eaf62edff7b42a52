"""Two answers to the same items: paired bootstrap intervals, and McNemar's test."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

N_RESAMPLES, LEVEL = 1000, 0.95


class Interval(NamedTuple):
    """A difference, the interval that holds it at a level of confidence, and the draws on which it was undefined."""

    difference: float
    low: float
    high: float
    n_undefined: int = 0


class McNemar(NamedTuple):
    """Items that only the first has right, those that only the second has, and the two-sided p."""

    only_first: int
    only_second: int
    p: float


def paired_bootstrap(
    difference: Callable[[Tensor], float],
    n_items: int,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Return a difference of two answers and its percentile interval, the same items being drawn for both.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; Koehn, EMNLP 2004.

    Args:
        difference: of a metric, on the items at these places (N,), which are drawn with replacement; nan where the
            metric is undefined on them. Such draws are left out and counted.
        n_items: N.
        n_resamples: how often N items are drawn.
        level: of confidence.
        seed: of the draws; it alone decides which items are drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(
        [difference(torch.randint(n_items, (n_items,), generator=generator)) for _ in range(n_resamples)],
        dtype=torch.double,
    )
    tail = (1 - level) / 2
    low, high = torch.nanquantile(values, torch.tensor([tail, 1 - tail], dtype=torch.double)).tolist()
    return Interval(difference(torch.arange(n_items)), low, high, int(values.isnan().sum()))


def mcnemar(first_correct: Tensor, second_correct: Tensor) -> McNemar:
    """Compare which items two answers have right by McNemar's exact test; p is 1 where they differ on none.

    Under the null hypothesis an item that only one has right is equally likely of either: binomial(n, 1/2). McNemar,
    Psychometrika 12, 1947; for classifiers Dietterich, Neural Computation 10, 1998.

    Args:
        first_correct: (N,) whether the first is right.
        second_correct: (N,) whether the second is.
    """
    from scipy.stats import binomtest

    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    n = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, n, 0.5).pvalue) if n else 1.0)
