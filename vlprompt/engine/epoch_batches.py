"""What a training sees, and in what order."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch

from vlprompt.core.batch import Batch
from vlprompt.core.images import picked
from vlprompt.core.stage import Lesson
from vlprompt.data.images.prefetch import ahead
from vlprompt.engine.model_selection import UNSEEN
from vlprompt.engine.train_config import Train


class Order:
    """The batches of a lesson: a pure function of (seed, epoch).

    beside: whether unlabelled images come with them, in passes of their own that go on from epoch to epoch. Without
    labelled images an epoch is a pass of the unlabelled ones.
    """

    def __init__(self, lesson: Lesson, train: Train, seed: int, beside: bool):
        self.seen, self.train, self.seed, self.announced = lesson.seen, train, seed, lesson.announced
        self.unseen = lesson.unlabelled if beside and lesson.unlabelled else None

    def __len__(self) -> int:
        """Images in an epoch."""
        return len(self.seen) or (0 if self.unseen is None else len(self.unseen))

    def epoch(self, epoch: int, steps: int) -> Iterator[Batch]:
        """The batches of an epoch of so many steps, each decoded while the one before it is computed."""
        return ahead(self._epoch(epoch, steps))

    def _epoch(self, epoch: int, steps: int) -> Iterator[Batch]:
        train = self.train
        batches = self.seen.batches(train.batch, seed=self.seed, epoch=epoch, views=train.views,
                                    drop_last=train.drop_last, shuffle=self.announced)  # fmt: skip
        if self.unseen is None:
            yield from batches
            return
        beside = self.unseen.drawn(train.batch, self.seed, train.views, epoch * steps)
        if len(self.seen):
            yield from (replace(batch, unlabelled=next(beside)) for batch in batches)
            return
        nothing = Batch(picked([], []), torch.empty(0, dtype=torch.long), self.seen.names)
        yield from (replace(nothing, unlabelled=batch) for batch in islice(beside, steps))


def check(lesson: Lesson, train: Train, judged: bool = False) -> None:
    """ValueError for a lesson without images, or without what selects; judged: by somebody who knows more than it."""
    if not len(lesson.train) and not lesson.unlabelled:
        raise ValueError("the lesson has no training images")
    if train.select == "val" and (lesson.val is None or not len(lesson.val)):
        raise ValueError(
            "train.select=val needs validation images, and there are none: use select=last, in a stream, which trains "
            "on them, task.with_val=false, where the source is gone select=entropy, density or agreement"
        )
    if train.select in UNSEEN and not lesson.unlabelled:
        raise ValueError(
            f"train.select={train.select} looks at unlabelled images of a target, and there are none: use select=last "
            "or val, or adapt to a target by --source and --target"
        )
    if train.select == "oracle" and not judged:
        raise ValueError("train.select=oracle takes the test labels of a target, and there is none: use select=val")
    if not lesson.announced and (train.epochs != 1 or train.iterations is not None):
        how = f"epochs={train.epochs}" if train.iterations is None else f"iterations={train.iterations}"
        raise ValueError(
            f"a task-free stream gives each image once, in its own order, and train.{how} is something else: "
            "say train.epochs=1 train.iterations=null train.warmup=0"
        )
