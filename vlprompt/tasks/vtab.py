"""VTAB-1k and sets tested like it: settings are searched on validation images, then all of them are trained on.

Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark", 2019,
arXiv:1910.04867; searched, trained and tested as Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv:2203.12119.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

from vlprompt.core.batch import Split
from vlprompt.core.stage import Lesson, Stage
from vlprompt.data.cards import is_card
from vlprompt.data.dataset import Data
from vlprompt.data.dataset_groups import members
from vlprompt.data.loading import given, named
from vlprompt.data.splits.sampling import held_out
from vlprompt.tasks.few_shot import split_of

HELD = 0.1  # of each class, for validation where the data have none


class VTAB:
    """One dataset of VTAB-1k, FGVC or the user's own.

    part: "search" trains on the training images and is tested on the validation images, and never meets the test split;
    "final" is tested on the test split. with_val: whether "final" trains on the validation images too; None: as VPT
    does, on all datasets but FGVC's five. A dataset without validation images gives a tenth of each class, always the
    same ones. seed: of the training alone, the images are the same for all; augment: instead of the card's (files
    without a card: "none"); skip_broken: leave out files that can't be decoded.
    """

    def __init__(
        self,
        dataset: str | Data,
        part: Literal["final", "search"] = "final",
        seed: int = 1,
        augment: str | None = None,
        skip_broken: bool = False,
        with_val: bool | None = None,
    ):
        if part not in ("final", "search"):
            raise ValueError(f"part is 'search' or 'final', not {part!r}")
        self.given, self.dataset = dataset, named(dataset)
        self.part, self.seed, self.augment, self.skip_broken = part, seed, augment, skip_broken
        self.with_val = with_val

    @cached_property
    def data(self) -> Data:
        bare = isinstance(self.given, str) and not is_card(self.given)
        return given(self.given, self.augment or ("none" if bare else None), self.skip_broken)

    @property
    def template(self) -> str:
        return self.data.template

    @cached_property
    def parts(self) -> tuple[Split, Split, Split]:
        """Training images, validation images, and both."""
        train, val = self.data.train, self.data.val
        if not len(train):
            raise ValueError(f"{self.dataset} is a test only and has no training images")
        if val is not None and len(val):
            return train, val, train.plus(val)
        return *held_out(train, HELD), train

    @cached_property
    def lesson(self) -> Lesson:
        both = self.dataset not in (members("fgvc") or []) if self.with_val is None else self.with_val
        return Lesson(self.parts[2 if self.part == "final" and both else 0])

    @property
    def protocol(self) -> dict[str, Any]:
        train, final = self.lesson.train, self.part == "final"
        note = self.data.note
        if self.parts[2] is self.data.train:
            note = "; ".join(filter(None, (note, "no validation images: a tenth of each class of train is held out")))
        return {
            "dataset": self.data.name,
            "part": self.part,
            "train": train.hash(),
            "test": (self.data.test if final else self.parts[1]).hash(),
            "images": len(train),
            "trained_on": "train" if len(train) == len(self.parts[0]) else "train+val",
            "short": [],
            "classes": [str(name) for name in train.names],
            "augment": train.augment,
            "template": self.data.template,
            "split": split_of(self.data),
            "note": note,
        }

    def stages(self) -> Iterator[Stage]:
        yield Stage(self.lesson, {"test": self.data.test} if self.part == "final" else {"val": self.parts[1]})

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        return dict(scores[-1]["test" if self.part == "final" else "val"])
