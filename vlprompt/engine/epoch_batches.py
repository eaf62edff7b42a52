"""The batches of an epoch: what a training sees, and in what order."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch

from vlprompt.core.batch import Batch
from vlprompt.core.images import build_images
from vlprompt.core.stage import Lesson
from vlprompt.data.images.prefetch import prefetch_images
from vlprompt.engine.model_selection import UNLABELLED_CRITERIA
from vlprompt.engine.train_config import TrainConfig


class EpochBatches:
    """The batches of a lesson, a pure function of (seed, epoch).

    Args:
        with_unlabelled: add unlabelled images to each batch, in passes of their own that go on from epoch to epoch.
            Without labelled images an epoch is one pass over the unlabelled ones.
    """

    def __init__(self, lesson: Lesson, config: TrainConfig, seed: int, with_unlabelled: bool):
        self.labelled, self.config, self.seed = lesson.train_with_memory, config, seed
        self.shuffle = lesson.has_task_boundaries  # a task-free stream has an order of its own
        self.unlabelled = lesson.unlabelled if with_unlabelled and lesson.unlabelled else None

    def __len__(self) -> int:
        """Items in an epoch."""
        return len(self.labelled) or (0 if self.unlabelled is None else len(self.unlabelled))

    def iter_epoch(self, epoch: int, n_steps: int) -> Iterator[Batch]:
        """Yield the batches of an epoch of n_steps, each decoded while the one before it is computed."""
        return prefetch_images(self._iter_epoch(epoch, n_steps))

    def _iter_epoch(self, epoch: int, n_steps: int) -> Iterator[Batch]:
        config = self.config
        batches = self.labelled.batches(
            config.batch_size,
            seed=self.seed,
            epoch=epoch,
            n_augmentations=config.augmentations,
            drop_last=config.drop_last,
            shuffle=self.shuffle,
        )
        if self.unlabelled is None:
            yield from batches
            return
        unlabelled = self.unlabelled.sample_batches(config.batch_size, self.seed, config.augmentations, epoch * n_steps)
        if len(self.labelled):
            yield from (replace(batch, unlabelled=next(unlabelled)) for batch in batches)
            return
        empty = Batch(build_images([], []), torch.empty(0, dtype=torch.long), self.labelled.names)
        yield from (replace(empty, unlabelled=batch) for batch in islice(unlabelled, n_steps))


def validate_lesson(lesson: Lesson, config: TrainConfig, has_epoch_scorer: bool = False) -> None:
    """Raise ValueError for a lesson without images, or without what train.model_selection compares.

    Args:
        has_epoch_scorer: whether epochs are scored by the caller, who may know more than the lesson (the oracle).
    """
    if not len(lesson.train) and not lesson.unlabelled:
        raise ValueError("lesson: expected training images, got none. Choose a dataset or lesson with some.")
    if config.model_selection == "val" and (lesson.val is None or not len(lesson.val)):
        raise ValueError(
            "train.model_selection=val: expected validation images, got none. Set train.model_selection=last; in a "
            "stream, which trains on them, task.with_val=false; without source images train.model_selection=entropy, "
            "density or agreement."
        )
    if config.model_selection in UNLABELLED_CRITERIA and not lesson.unlabelled:
        raise ValueError(
            f"train.model_selection={config.model_selection}: expected unlabelled images of a target, got none. Set "
            "train.model_selection=last or val, or adapt to a target by --source and --target."
        )
    if config.model_selection == "oracle" and not has_epoch_scorer:
        raise ValueError(
            "train.model_selection=oracle: expected a target with test labels, got none. Set train.model_selection=val."
        )
    if lesson.is_single_pass and (config.epochs != 1 or config.iterations is not None):
        setting = f"epochs={config.epochs}" if config.iterations is None else f"iterations={config.iterations}"
        raise ValueError(
            f"train.epochs, train.iterations: expected one epoch of a stream that gives each image once (task.kind), "
            f"got train.{setting}. Set train.epochs=1 train.iterations=null train.warmup=0."
        )
