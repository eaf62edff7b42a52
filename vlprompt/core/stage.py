"""Lessons, which methods learn from, and stages, which a task yields."""

from dataclasses import dataclass, field, replace

from vlprompt.core.batch import Split, Unlabelled


@dataclass(frozen=True)
class Lesson:
    """All that a method sees of a stage.

    Args:
        train: labelled items; may be empty if there are unlabelled ones.
        val: validation items.
        unlabelled: images of the domain to adapt to.
        memory: items of earlier lessons, for rehearsal.
        domains: names of the domains in the order of `Batch.domains`; the last one is that of the unlabelled images.
        index: number of the lesson, from 0.
        total: number of lessons, None if unknown.
        has_task_boundaries: False for a stream whose images come in their own order, each once, without a sign of
            where one task ends.
        is_single_pass: True for a stream that gives each image once.
    """

    train: Split
    val: Split | None = None
    unlabelled: Unlabelled | None = None
    memory: Split | None = None
    domains: tuple[str, ...] = ()
    index: int = 0
    total: int | None = 1
    has_task_boundaries: bool = True
    is_single_pass: bool = False

    @property
    def train_with_memory(self) -> Split:
        """The training items and those for rehearsal."""
        return self.train if self.memory is None else self.train.concat(self.memory)

    def without_items(self) -> "Lesson":
        """Return the lesson without items: what a method needs to have the shape that this lesson gave it."""
        return replace(self, train=Split((), (), self.train.names), val=None, unlabelled=None, memory=None)


@dataclass(frozen=True)
class UnknownTest:
    """Images of a target's unknown classes, which an answer should be refused for.

    Args:
        images: of the unknown classes; their labels mean nothing.
        validation: known images of the sources, by which the threshold of a refusal is chosen.
    """

    images: Split
    validation: Split


@dataclass(frozen=True)
class Stage:
    """A lesson and its tests, which only the evaluator sees.

    Args:
        lesson: what the method learns from.
        tests: splits by name.
        future_tests: tests of later stages, run after the lesson, for methods that can answer about unseen classes.
        initial_tests: tests run before the first lesson, for such methods.
        labelled_target: the unlabelled images with their labels (-1: an unknown class), only to judge pseudo-labels.
        unknown_tests: items of unknown classes, against which the first test is compared; their labels mean nothing.
        unknown_scores: the scores that compare them; () for all that the method has.
        unknown_test: images of classes that no source has, and how to refuse them.
        needs_epoch_metrics: whether the test "target" is run after each epoch.
        needs_zero_shot: whether a zero-shot CLIP takes the tests as well.
    """

    lesson: Lesson
    tests: dict[str, Split]
    future_tests: dict[str, Split] = field(default_factory=dict)
    initial_tests: dict[str, Split] = field(default_factory=dict)
    labelled_target: Split | None = None
    unknown_tests: dict[str, Split] = field(default_factory=dict)
    unknown_scores: tuple[str, ...] = ()
    needs_epoch_metrics: bool = False
    needs_zero_shot: bool = False
    unknown_test: UnknownTest | None = None
