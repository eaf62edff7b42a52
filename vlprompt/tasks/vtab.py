"""VTAB-1k protocol: search hyperparameters on validation images, then train on train and val together.

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
from vlprompt.data.dataset_groups import list_benchmark_datasets
from vlprompt.data.loading import identify_dataset, resolve_dataset
from vlprompt.data.splits.sampling import hold_out
from vlprompt.tasks.few_shot import get_split_origin

VAL_FRACTION = 0.1  # of each class, held out where the dataset has no val


class VTAB:
    """One dataset of VTAB-1k, FGVC or the user's own.

    Without validation images, a tenth of each class is held out, the same for every seed.

    Args:
        dataset: a card's name, a folder or file of images, or opened Data.
        phase: "search" trains on train and tests on val without reading the test split; "final" tests on test.
        seed: of the training only; the images do not depend on it.
        augment: replaces the card's augmentation; None for the card's, or "none" for files without a card.
        skip_broken: leave out files that can't be decoded.
        with_val: whether "final" trains on val too; None follows VPT: on all datasets but FGVC's five.
        layout: as in FewShot.
    """

    def __init__(
        self,
        dataset: str | Data,
        phase: Literal["final", "search"] = "final",
        seed: int = 1,
        augment: str | None = None,
        skip_broken: bool = False,
        with_val: bool | None = None,
        layout: str | None = None,
    ):
        if phase not in ("final", "search"):
            raise ValueError(f"task.phase: expected 'search' or 'final', got {phase!r}. Set one of these.")
        self.dataset_source, self.dataset = dataset, identify_dataset(dataset)
        self.phase, self.seed, self.augment, self.skip_broken = phase, seed, augment, skip_broken
        self.with_val, self.layout = with_val, layout

    @cached_property
    def data(self) -> Data:
        has_no_card = isinstance(self.dataset_source, str) and not is_card(self.dataset_source)
        augment = self.augment or ("none" if has_no_card else None)
        return resolve_dataset(self.dataset_source, augment, self.skip_broken, layout=self.layout)

    @property
    def opened_data(self) -> list[Data]:
        """The datasets that the task opens."""
        return [self.data]

    @property
    def template(self) -> str:
        return self.data.template

    @cached_property
    def splits(self) -> tuple[Split, Split, Split]:
        """Training images, validation images, and both."""
        train, val = self.data.train, self.data.val
        if not len(train):
            raise ValueError(
                f"{self.dataset}: expected training images, got a dataset with a test split only. Choose another "
                "dataset."
            )
        if val is not None and len(val):
            return train, val, train.concat(val)
        return *hold_out(train, VAL_FRACTION), train

    @cached_property
    def lesson(self) -> Lesson:
        with_val = self.with_val
        if with_val is None:
            with_val = self.dataset not in (list_benchmark_datasets("fgvc") or [])
        return Lesson(self.splits[2 if self.phase == "final" and with_val else 0])

    @property
    def protocol(self) -> dict[str, Any]:
        train, is_final = self.lesson.train, self.phase == "final"
        note = self.data.note
        if self.splits[2] is self.data.train:
            note = "; ".join(filter(None, (note, "no validation images: a tenth of each class of train is held out")))
        return {
            "dataset": self.data.name,
            "phase": self.phase,
            "train": train.hash(),
            "test": (self.data.test if is_final else self.splits[1]).hash(),
            "train_images": len(train),
            "trained_on": "train" if len(train) == len(self.splits[0]) else "train+val",
            "undersized_classes": [],
            "classes": [str(name) for name in train.names],
            "augment": train.augment,
            "template": self.data.template,
            "split": get_split_origin(self.data),
            "note": note,
        }

    def stages(self) -> Iterator[Stage]:
        yield Stage(self.lesson, {"test": self.data.test} if self.phase == "final" else {"val": self.splits[1]})

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        return dict(scores[-1]["test" if self.phase == "final" else "val"])
