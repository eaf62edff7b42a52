"""Scores of known items and of sets of unknown ones as one value, of which every metric of unknown classes follows."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from vlprompt.metrics.open_world import open_auc
from vlprompt.metrics.unknown import UNKNOWN_FUNCTIONS

OPEN_AUC = "open_auc"
SCORE_METRICS = (*UNKNOWN_FUNCTIONS, OPEN_AUC)  # of one score each


@dataclass(frozen=True)
class UnknownSets:
    """How well N items are known, the known and the unknown together, by S scores.

    Args:
        names: of the scores.
        scores: (N, S), high for known.
        sets: names of the sets of unknown items.
        membership: (N,) indices into `sets`; -1 for a known item.
        is_right: (N,) whether a known item is named rightly; that of an unknown item is not read.
    """

    names: Sequence[str]
    scores: Tensor
    sets: Sequence[str]
    membership: Tensor
    is_right: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, indices: Tensor) -> "UnknownSets":
        """Return the items at these places."""
        return replace(
            self,
            scores=self.scores[indices],
            membership=self.membership[indices],
            is_right=self.is_right[indices],
        )

    def compute(self, metric: str, score: str, index: int) -> float:
        """Return a metric in percent, of SCORE_METRICS, of one score against one set.

        Raises:
            ValueError: for a score that there is not, and for no known items or none of the set.
        """
        if score not in self.names:
            raise ValueError(
                f"predictions: expected the score {score}, got {', '.join(self.names)}. Take one of these."
            )
        column, is_known = self.scores[:, list(self.names).index(score)], self.membership < 0
        known, unknown = column[is_known], column[self.membership == index]
        if metric == OPEN_AUC:
            return open_auc(known, self.is_right[is_known], unknown)
        return UNKNOWN_FUNCTIONS[metric](known, unknown)

    def average(self, metric: str, score: str) -> float:
        """Return the mean of a metric over the sets, as the summary of a run has it; arguments as in `compute`."""
        return statistics.fmean(self.compute(metric, score, index) for index in range(len(self.sets)))

    def build_rows(self) -> list[dict[str, object]]:
        """Return every metric of each set and score."""
        return [
            {
                "unknown": name,
                "score": score,
                **{metric: self.compute(metric, score, index) for metric in SCORE_METRICS},
            }
            for index, name in enumerate(self.sets)
            for score in self.names
        ]
