"""Several labels in an image: train on all or few images, or on a known share of their labels, test on all.

A label is present, absent or unknown. The partial protocol, where each entry of image and class is known with some
probability, is that of Durand et al., CVPR 2019, arXiv:1902.09720, and of DualCoOp, arXiv:2206.09541.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, get_args

from vlprompt.core.batch import Reading, Split
from vlprompt.core.stage import Lesson, Stage
from vlprompt.data.dataset import Data
from vlprompt.data.loading import resolve_dataset
from vlprompt.data.splits.label_sets import hide_entries, sample_label_sets
from vlprompt.tasks.few_shot import FewShot


class MultiLabel(FewShot):
    """Train on images with several labels, all of them or `shots` of each class, and test on all classes.

    Args:
        dataset: a card's name, a table with label sets, or opened Data.
        shots: images of each class, None for all images.
        known: probability that an entry of image and class is known in training and validation, from above 0 to 1.
        reading: of logits as odds of each label, in training and tests: sigmoid takes them as they are, contrastive
            compares each with the other classes, as the softmax does.
        seed: draws the shots and what is known.
        augment: as in FewShot.
        skip_broken: as in FewShot.
        layout: as in FewShot.
    """

    has_several_labels: ClassVar = True

    def __init__(
        self,
        dataset: str | Data,
        shots: int | None = None,
        known: float = 1.0,
        reading: Reading = "sigmoid",
        seed: int = 1,
        augment: str | None = None,
        skip_broken: bool = False,
        layout: str | None = None,
    ):
        super().__init__(dataset, shots, seed, augment, skip_broken, layout)
        if reading not in get_args(Reading):
            raise ValueError(
                f"task.reading: expected {' or '.join(get_args(Reading))}, got {reading!r}. Set one of them."
            )
        if not 0 < known <= 1:
            raise ValueError(f"task.known: expected a share above 0 and at most 1, got {known}. Set task.known=0.5.")
        self.known = known
        self.reading: Reading = reading

    @cached_property
    def data(self) -> Data:
        return open_label_sets(self.dataset_source, self.reading, self.augment, self.skip_broken, self.layout)

    @cached_property
    def training_images(self) -> tuple[Split, Split | None]:
        """The training and validation images, with what is known of their labels."""
        train, val = self.data.train, self.data.val
        if self.shots is not None:
            train, val = sample_label_sets(train, val, self.shots, self.seed)
        train, val = hide_entries(train, self.known, self.seed), val and hide_entries(val, self.known, self.seed)
        if not any(train.count_per_class()):
            had_some = any(self.data.train.count_per_class())
            setting, got = ("task.known", f"{self.known:g}, which leaves none") if had_some else ("dataset", "none")
            remedy = "Set a higher task.known, or take more images." if had_some else "Label some of them."
            raise ValueError(
                f"{setting}: expected labels that are known to be present, got {got} in {len(train)} training images. "
                f"{remedy}"
            )
        return train, val

    @cached_property
    def lesson(self) -> Lesson:
        return Lesson(*self.training_images)

    @property
    def protocol(self) -> dict[str, Any]:
        train, test = self.lesson.train, self.data.test
        counts = zip(test.names, test.count_per_class(), strict=True)
        absent = [str(name) for name, count in counts if not count]
        warning = f"mAP leaves out {len(absent)} classes that are in no test image: {', '.join(absent[:10])}"
        return {
            **super().protocol,
            "known": self.known,
            "reading": self.reading,
            "never_positive": absent,
            "images_without_labels": {"train": count_unlabelled(train), "test": count_unlabelled(test)},
            **({"warnings": [warning + " ..." * (len(absent) > 10)]} if absent else {}),
        }

    def stages(self) -> Iterator[Stage]:
        yield Stage(self.lesson, {"test": self.data.test})


def count_unlabelled(split: Split) -> int:
    """Return the number of items without a label that is known to be present."""
    return sum(1 not in row for row in split.labels)


def open_label_sets(
    dataset: str | Data,
    reading: Reading,
    augment: str | None = None,
    skip_broken: bool = False,
    layout: str | None = None,
) -> Data:
    """Open a dataset whose images may have several labels, of logits that are read so; arguments as in `MultiLabel`.

    Raises:
        ValueError: for images with one label each, and where no test image has any.
    """
    data = resolve_dataset(dataset, augment, skip_broken, layout=layout, allow_label_sets=True)
    if not data.test.has_several_labels:
        raise ValueError(
            f"dataset: expected images that may have several labels, got {data.name!r}, where each has one. Take "
            "another dataset, or leave --task multi_label out."
        )
    if not any(data.test.count_per_class()):
        raise ValueError(
            f"dataset: expected test images with labels, got none in {data.name!r}, so that nothing can be scored. "
            "Take another dataset or split."
        )
    train, test = replace(data.train, reading=reading), replace(data.test, reading=reading)
    return replace(data, train=train, val=data.val and replace(data.val, reading=reading), test=test)
