"""Predictions of a test as one value, of which every metric can be computed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from vlprompt.metrics.answers import require_labels
from vlprompt.metrics.multi_label import require_targets


@dataclass(frozen=True)
class Predictions:
    """Predictions of N items among C classes, with their labels: one each, or several.

    Args:
        probabilities: (N, C); of one label a softmax, of several a probability each.
        predicted: (N,) the answer of each item, C for none; of several labels the most probable class.
        names: the C classes.
        labels: (N,); None where an item has several.
        targets: (N, C) of 1, 0 and -1 (unknown), where an item has several labels.
        is_known: (C,) whether training had the class; None where that is not recorded.
        odds: (N, C) logarithms of the odds of several labels, above 0 where a label is predicted; they rank labels
            whose probabilities round to 1. None for the probabilities, and those above .5.
    """

    probabilities: Tensor
    predicted: Tensor
    names: Sequence[str]
    labels: Tensor | None = None
    targets: Tensor | None = None
    is_known: Tensor | None = None
    odds: Tensor | None = None

    def __post_init__(self) -> None:
        if self.targets is not None:
            require_targets(self.probabilities, self.targets)
        else:
            require_labels(self.one_label, len(self.names))

    def __len__(self) -> int:
        return len(self.probabilities)

    def select(self, indices: Tensor) -> "Predictions":
        """Return the predictions of the items at these places."""
        return replace(
            self,
            probabilities=self.probabilities[indices],
            predicted=self.predicted[indices],
            labels=None if self.labels is None else self.labels[indices],
            targets=None if self.targets is None else self.targets[indices],
            odds=None if self.odds is None else self.odds[indices],
        )

    @property
    def one_label(self) -> Tensor:
        """The label (N,) of each item; ValueError where items have several."""
        if self.labels is None:
            raise ValueError("predictions: expected items of one label each, got items of several. Take mAP, CF1, OF1.")
        return self.labels

    @cached_property
    def label_matrix(self) -> Tensor:
        """Targets (N, C); of one label each its class and no other."""
        if self.targets is not None:
            return self.targets
        return torch.nn.functional.one_hot(self.one_label, len(self.names))

    @property
    def several_labels(self) -> Tensor:
        """Targets (N, C); ValueError where each item has one label."""
        if self.targets is None:
            raise ValueError(
                "predictions: expected items of several labels, got items of one label each. Take macro_f1."
            )
        return self.targets

    @property
    def label_scores(self) -> Tensor:
        """What ranks the labels (N, C)."""
        return self.probabilities if self.odds is None else self.odds

    @property
    def label_threshold(self) -> float:
        """The score above which a label is predicted."""
        return 0.5 if self.odds is None else 0.0

    @cached_property
    def confidence(self) -> Tensor:
        """The highest probability (N,) of each item."""
        return self.probabilities.double().amax(1)

    @cached_property
    def top_correct(self) -> Tensor:
        """Whether the most probable class (N,) is the label."""
        return self.probabilities.argmax(1) == self.one_label

    @property
    def known_classes(self) -> Tensor:
        """Whether training had each class (C,).

        Raises:
            ValueError: where items of classes that it had, or of those that it had not, are missing.
        """
        if self.is_known is None or len(self.is_known[self.one_label].unique()) < 2:
            raise ValueError(
                "predictions: expected items of classes that training had and of others, got one kind. Take those of a "
                "test of both, such as joint of base_to_new."
            )
        return self.is_known

    @property
    def item_is_known(self) -> Tensor:
        """Whether each item (N,) is of a class that training had."""
        return self.known_classes[self.one_label]

    @cached_property
    def known_score(self) -> Tensor:
        """The highest probability (N,) of the classes that training had, among all classes."""
        return self.probabilities.double()[:, self.known_classes].amax(1)

    def find_absent_classes(self) -> list[str]:
        """Return the names of the classes that are never positive."""
        is_present = (self.label_matrix == 1).any(0).tolist()
        return [name for name, present in zip(self.names, is_present, strict=True) if not present]
