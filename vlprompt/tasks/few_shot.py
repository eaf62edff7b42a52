"""Few-shot classification: train on k images per class, test on the whole test split.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv:2109.01134.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from vlprompt.core.stage import Lesson, Stage
from vlprompt.data.dataset import Data
from vlprompt.data.loading import given, named
from vlprompt.data.splits.sampling import few_shot


def split_of(data: Data) -> str:
    """Whose split it is: "literature" for the published lists, "own" otherwise."""
    return str(data.test.info.get("split", "own"))


class FewShot:
    """k shots per class, all classes.

    dataset: a card's name, a folder or file of images, or Data that was opened already; shots: images per class, None
    for all; seed: draws the shots; augment: "none", "crop", "crop-flip" instead of the card's; skip_broken: leave out
    files that can't be decoded.
    """

    def __init__(
        self,
        dataset: str | Data,
        shots: int | None = 16,
        seed: int = 1,
        augment: str | None = None,
        skip_broken: bool = False,
    ):
        self.given, self.dataset = dataset, named(dataset)
        self.shots, self.seed, self.augment, self.skip_broken = shots, seed, augment, skip_broken

    @cached_property
    def data(self) -> Data:
        return given(self.given, self.augment, self.skip_broken)

    @property
    def template(self) -> str:
        return self.data.template

    @cached_property
    def lesson(self) -> Lesson:
        if self.shots is None:
            return Lesson(self.data.train, self.data.val)
        return Lesson(*few_shot(self.data.train, self.data.val, self.shots, self.seed))

    @property
    def protocol(self) -> dict[str, Any]:
        train = self.lesson.train
        return {
            "dataset": self.data.name,
            "train": train.hash(),
            "test": self.data.test.hash(),
            "images": len(train),
            "short": train.info.get("short", []),
            "classes": [str(name) for name in train.names],
            "augment": train.augment,
            "template": self.data.template,
            "split": split_of(self.data),
            "note": self.data.note,
        }

    def stages(self) -> Iterator[Stage]:
        yield Stage(self.lesson, {"test": self.data.test})

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        return dict(scores[-1]["test"])
