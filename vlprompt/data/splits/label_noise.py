"""Wrong labels: training labels that are changed on purpose, a pure function of a seed."""

import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from vlprompt.core.batch import Split
from vlprompt.core.class_names import class_ids
from vlprompt.runtime.errors import suggest_nearest
from vlprompt.runtime.seeding import derive_seed

KINDS = ("symmetric", "pairflip", "asymmetric")


@dataclass(frozen=True)
class LabelNoise:
    """Which training labels become wrong ones.

    Args:
        kind: symmetric (any other class, each as often), pairflip (the next class of the list, after the last the
            first; the "asymmetric" of NLPrompt's paper) or asymmetric (the class that `flips` names).
        rate: share of the images whose label becomes another one; of asymmetric noise among those of the classes in
            `flips`.
        flips: of asymmetric noise, class id -> id of the class that it is taken for.

    Raises:
        ValueError: for a kind that there is not, a rate below 0 or above 1, or flips with another kind.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # a mistyped key is an error

    kind: Literal["symmetric", "pairflip", "asymmetric"] = "symmetric"
    rate: float = 0.0
    flips: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"task.noise.kind: expected {', '.join(KINDS)}, got {self.kind!r}; {suggest_nearest(self.kind, KINDS)}"
            )
        if not 0 <= self.rate <= 1:
            raise ValueError(f"task.noise.rate: expected 0 to 1, got {self.rate}. Set task.noise.rate=0.5.")
        if (self.kind == "asymmetric") != bool(self.flips):
            raise ValueError(
                f"task.noise.flips: expected classes with kind=asymmetric and none with another kind, got "
                f"{dict(self.flips)} with {self.kind}. Set 'task.noise={{kind: asymmetric, rate: 0.4, flips: "
                "{ID: ID}}', or kind=pairflip, which takes each class for the next one."
            )

    def describe(self) -> str:
        """Return the noise in words for a protocol, "none" where no label is changed."""
        flips = "".join(f" {known}>{other}" for known, other in self.flips.items())
        return f"{self.kind} {self.rate:g}{flips}" if self.rate else "none"


def flip_labels(train: Split, noise: LabelNoise, seed: int) -> Split:
    """Change int(rate x n) training labels to wrong ones; those of a lower rate are among those of a higher one.

    Returns:
        The same items in their order; info["wrong_labels"] is the number of labels that were changed.

    Raises:
        ValueError: for a single class, or flips of classes that there are not.
    """
    flips, rng = _number_flips(train, noise), random.Random(derive_seed(seed, "wrong labels"))
    candidates = [i for i, label in enumerate(train.labels) if noise.kind != "asymmetric" or label in flips]
    rng.shuffle(candidates)
    n_classes, labels = len(train.names), list(train.labels)
    for i in candidates[: int(noise.rate * len(candidates) + 1e-9)]:
        step = rng.randrange(1, n_classes) if noise.kind == "symmetric" else 1
        labels[i] = flips[labels[i]] if flips else (labels[i] + step) % n_classes
    _warn_of_majority(noise, n_classes)
    n_wrong = sum(a != b for a, b in zip(labels, train.labels, strict=True))
    return replace(train, labels=tuple(labels), info=train.info | {"wrong_labels": n_wrong})


def _number_flips(train: Split, noise: LabelNoise) -> dict[int, int]:
    """Return label -> wrong label of asymmetric noise."""
    ids = class_ids(train.names)
    if len(ids) < 2:
        raise ValueError(
            f"task.noise: expected at least two classes, got {len(ids)}. Leave task.noise out, or add a class."
        )
    for known, other in noise.flips.items():
        for class_id in (known, other):
            if class_id not in ids:
                hint = suggest_nearest(class_id, ids)
                raise ValueError(f"task.noise.flips: expected ids of training classes, got {class_id!r}; {hint}")
        if known == other:
            raise ValueError(
                f"task.noise.flips: expected another class for {known!r}, got itself. Name the class it is taken for."
            )
    return {ids.index(known): ids.index(other) for known, other in noise.flips.items()}


def _warn_of_majority(noise: LabelNoise, n_classes: int) -> None:
    """Warn where a class has no more images with its own label than with some other one."""
    limit = 1 - 1 / n_classes if noise.kind == "symmetric" else 0.5
    if noise.rate >= limit:
        warnings.warn(
            f"task.noise.rate: expected less than {limit:g} for {noise.kind} noise among {n_classes} classes, got "
            f"{noise.rate:g}: the right label of an image is no longer its most frequent one, so nothing in the labels "
            "tells which class is which.",
            stacklevel=3,
        )
