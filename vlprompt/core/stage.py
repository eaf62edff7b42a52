"""Values that flow from data to methods: batches, splits, lessons and stages (images: images.py, names: name.py)."""

from dataclasses import dataclass, field, replace

from vlprompt.core.batch import Split, Unlabelled


@dataclass(frozen=True)
class Lesson:
    """All that a method is ever shown of a stage.

    unlabelled: images of the domain to adapt to; train may then be without images. domains: the names of the domains,
    in the order of `Batch.domains`, that of the unlabelled images the last. memory: items of earlier lessons that were
    kept to be rehearsed. index, total: which of how many lessons. announced: False for a stream whose images come in
    their own order, each once, without a word on where one task ends.
    """

    train: Split
    val: Split | None = None
    unlabelled: Unlabelled | None = None
    memory: Split | None = None
    domains: tuple[str, ...] = ()
    index: int = 0
    total: int | None = 1
    announced: bool = True

    @property
    def seen(self) -> Split:
        """What is trained on: the lesson's items and those that were kept."""
        return self.train if self.memory is None else self.train.plus(self.memory)

    def empty(self) -> "Lesson":
        """The same without items: what a method needs to have the shape that this lesson gave it."""
        return replace(self, train=Split((), (), self.train.names), val=None, unlabelled=None, memory=None)


@dataclass(frozen=True)
class Stage:
    """A lesson and its tests by name; the tests are the evaluator's alone.

    ahead: tests of what is still to come, after the lesson; before: tests that are made before the first lesson. Both
    are only for methods that can answer about classes they never met. truth: the lesson's unlabelled images with their
    labels, only to judge what was made of them. track: the test "target" is judged after each epoch too; compared: a
    zero-shot CLIP takes the tests beside the method.
    """

    lesson: Lesson
    tests: dict[str, Split]
    ahead: dict[str, Split] = field(default_factory=dict)
    before: dict[str, Split] = field(default_factory=dict)
    truth: Split | None = None
    track: bool = False
    compared: bool = False
