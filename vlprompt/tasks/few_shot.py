"""Few-shot classification: train on k images per class, test on the whole test split.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv:2109.01134.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names
from vlprompt.core.stage import Lesson, Stage
from vlprompt.data.dataset import Data
from vlprompt.data.loading import identify_dataset, resolve_dataset
from vlprompt.data.splits.label_hiding import anonymize_items, drop_labels
from vlprompt.data.splits.label_noise import LabelNoise, flip_labels
from vlprompt.data.splits.sampling import sample_few_shot


def get_split_origin(data: Data) -> str:
    """Return the origin of a split: "literature" for the published lists, "custom" otherwise."""
    return str(data.test.info.get("split", "custom"))


class FewShot:
    """Train on k shots per class, and test on all classes.

    Args:
        dataset: a card's name, a folder or file of images, or opened Data.
        shots: images per class, None for all.
        seed: draws the shots.
        augment: "none", "crop", "crop-flip" or "randaugment" instead of the card's augmentation.
        skip_broken: leave out files that can't be decoded.
        layout: what the sub-folders of a folder are (classes, groups, domains or splits); None recognises it.
        unlabelled: learn from the images of all classes without their labels, as methods with a teacher do; validation
            images, which have labels, are left out too.
        noise: wrong labels among the training images, drawn by the seed: {kind: symmetric, pairflip or asymmetric,
            rate: share}; validation and test images keep theirs.
    """

    def __init__(
        self,
        dataset: str | Data,
        shots: int | None = 16,
        seed: int = 1,
        augment: str | None = None,
        skip_broken: bool = False,
        layout: str | None = None,
        unlabelled: bool = False,
        noise: LabelNoise | None = None,
    ):
        self.dataset_source, self.dataset = dataset, identify_dataset(dataset)
        self.shots, self.seed, self.augment = shots, seed, augment
        self.skip_broken, self.layout, self.unlabelled = skip_broken, layout, unlabelled
        self.noise = LabelNoise(**noise) if isinstance(noise, dict) else noise
        if self.noise is not None and unlabelled:
            raise ValueError(
                "task.noise: expected labels to change, got task.unlabelled=true, which has none. Leave one out."
            )

    @cached_property
    def data(self) -> Data:
        return resolve_dataset(self.dataset_source, self.augment, self.skip_broken, layout=self.layout)

    @property
    def opened_data(self) -> list[Data]:
        """The datasets that the task opens."""
        return [self.data]

    @property
    def template(self) -> str:
        return self.data.template

    @cached_property
    def training_images(self) -> tuple[Split, Split | None]:
        """The training and validation images of all classes."""
        if self.shots is None:
            return self.data.train, self.data.val
        return sample_few_shot(self.data.train, self.data.val, self.shots, self.seed)

    @cached_property
    def lesson(self) -> Lesson:
        train, val = self.training_images
        return self.hide_labels(train) if self.unlabelled else Lesson(self.add_noise(train), val)

    def add_noise(self, train: Split) -> Split:
        """Return the training images of a lesson with the wrong labels of `noise`."""
        return train if self.noise is None else flip_labels(train, self.noise, self.seed)

    @staticmethod
    def hide_labels(train: Split) -> Lesson:
        """Return the lesson of all classes that has these images without labels."""
        return Lesson(train.select([]), unlabelled=drop_labels(anonymize_items(train)))

    @property
    def labelled_names(self) -> Names:
        """The classes whose labels may be learned from."""
        return self.data.train.names

    @property
    def protocol(self) -> dict[str, Any]:
        train = self.lesson.train
        return {
            "dataset": self.data.name,
            "dataset_hash": self.data.hash(),
            "train": train.hash(),
            "test": self.data.test.hash(),
            "train_images": len(train),
            "undersized_classes": train.info.get("undersized_classes", []),
            "classes": [str(name) for name in train.names],
            "augment": train.augment,
            "template": self.data.template,
            "split": get_split_origin(self.data),
            "note": self.data.note,
            **self._describe_unlabelled(),
            **({} if self.noise is None else {"noise": self.noise.describe()}),
            **{key: train.info[key] for key in ("wrong_labels",) if key in train.info},
        }

    def _describe_unlabelled(self) -> dict[str, Any]:
        images = self.lesson.unlabelled
        return {} if images is None else {"unlabelled": images.hash(), "unlabelled_images": len(images)}

    def stages(self) -> Iterator[Stage]:
        yield Stage(self.lesson, {"test": self.data.test})

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        return dict(scores[-1]["test"])
