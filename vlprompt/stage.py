"""Values that flow from data to methods: looks, images, batches, splits, lessons and stages (names: name.py)."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlprompt.name import Name as Name
from vlprompt.name import Names as Names
from vlprompt.name import ids as ids
from vlprompt.name import named as named


def number(*key: object) -> int:
    """A 63-bit number from any key, the same in every process: where all random streams start."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def generator(*key: object) -> torch.Generator:
    return torch.Generator().manual_seed(number(*key))


@dataclass(frozen=True)
class Look:
    """How a tower wants its pixels: size (h, w), mean and std per channel, and how a picture is brought to that size.

    resize: "shortest" (then the centre is cut out) or "squash"; interpolation: "bicubic" or "bilinear"; crop: the share
    of the resized side that is cut out (224 of 256 is 0.875); antialias: False samples the picture at points.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"
    resize: str = "shortest"
    crop: float = 1.0
    antialias: bool = True


@dataclass(frozen=True)
class View:
    """One augmented sight of an image: the kind of augmentation and the number that all its randomness comes from."""

    augment: str
    seed: int


@dataclass(frozen=True, slots=True)
class Item:
    """An image that can be decoded: `pixels(look, view)` -> (3, h, w), `key` tells it from any other image.

    name: where it stands in its dataset, the same on every machine; it goes into the hash of a split and into the seed
    of a view. Without one it is the key.
    """

    key: str
    pixels: Callable[[Look, View | None], Tensor]
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.key)


class Images:
    """B images that know their keys (None: drawn anew, never stored) and are decoded at most once for a look.

    again: makes another view of the same images, for methods that look several times.
    """

    def __init__(
        self,
        decode: Callable[[Look, Sequence[int]], Tensor],
        keys: Sequence[str | None],
        again: "Callable[[str, int], Images] | None" = None,
    ):
        self.keys, self._decode, self._again = tuple(keys), decode, again
        self._done: dict[Look, Tensor] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def pixels(self, look: Look) -> Tensor:
        """(B, 3, h, w), normalised as the look says."""
        if look not in self._done:
            self._done[look] = self._decode(look, range(len(self)))
        return self._done[look]

    def view(self, augment: str, k: int) -> "Images":
        """The k-th augmented view of each image, always the same one; ValueError where only pixels are there."""
        if self._again is None:
            raise ValueError("these images are pixels, so they have no other views; give them as files or pictures")
        return self._again(augment, k)

    def some(self, look: Look, places: Sequence[int]) -> Tensor:
        """The pixels of some of them; nothing else is decoded."""
        return self._done[look][list(places)] if look in self._done else self._decode(look, places)


@dataclass(frozen=True)
class Batch:
    """inputs: Images (or tokens); labels (B,) are places in `names`; domains (B,); progress of training in 0..1."""

    inputs: Images
    labels: Tensor
    names: Names
    domains: Tensor | None = None
    unlabelled: "Batch | None" = None
    step: int = 0
    progress: float = 0.0

    def split(self, size: int | None) -> "list[Batch]":
        """Micro-batches of at most `size` items that make up this one."""
        if size is None or size >= len(self.inputs):
            return [self]
        parts = []
        for begin in range(0, len(self.inputs), size):
            end = min(begin + size, len(self.inputs))
            parts.append(replace(self, inputs=_part(self.inputs, begin, end), labels=self.labels[begin:end],
                                 domains=None if self.domains is None else self.domains[begin:end]))  # fmt: skip
        return parts


def _part(images: Images, begin: int, end: int) -> Images:
    return Images(
        lambda look, places: images.some(look, [begin + p for p in places]),
        images.keys[begin:end],
        lambda augment, k: _part(images.view(augment, k), begin, end),
    )


def picked(items: "Sequence[Item]", views: "Sequence[View | None]") -> Images:
    """Images of items, each in its view (None: as it is)."""
    keys = [item.key if v is None else f"{item.key}|{v.augment}|{v.seed}" for item, v in zip(items, views, strict=True)]
    return Images(
        lambda look, places: torch.stack([items[p].pixels(look, views[p]) for p in places]),
        keys,
        lambda augment, k: picked(items, [View(augment, number("view", k, item.name)) for item in items]),
    )


@dataclass(frozen=True)
class Split:
    """Items with labels (places in `names`), a domain each where there are domains, and how training views are made."""

    items: tuple[Item, ...]
    labels: tuple[int, ...]
    names: Names
    domains: tuple[int, ...] | None = None
    augment: str = "none"
    info: dict[str, object] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.items)

    def of(self, places: Sequence[int]) -> "Split":
        """The items at these places."""
        domains = None if self.domains is None else tuple(self.domains[i] for i in places)
        return replace(
            self,
            items=tuple(self.items[i] for i in places),
            labels=tuple(self.labels[i] for i in places),
            domains=domains,
        )

    def classes(self, wanted: Sequence[int]) -> "Split":
        """Only these classes, renumbered in the order given."""
        new = {old: i for i, old in enumerate(wanted)}
        kept = self.of([i for i, label in enumerate(self.labels) if label in new])
        return replace(
            kept, labels=tuple(new[label] for label in kept.labels), names=tuple(self.names[i] for i in wanted)
        )

    def count(self) -> list[int]:
        """Items per class."""
        counts = [0] * len(self.names)
        for label in self.labels:
            counts[label] += 1
        return counts

    def hash(self) -> str:
        """Tells this split from another, wherever its files lie: names of items, labels, names and ids, in order."""
        told = (
            [item.name for item in self.items],
            self.labels,
            [str(n) for n in self.names],
            ids(self.names),
            self.domains,
        )
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def batches(
        self,
        size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        views: int | None = None,
        drop_last: bool = False,
        shuffle: bool = True,
    ) -> Iterator[Batch]:
        """Batches in order and without augmentation (seed None), or augmented and shuffled by (seed, epoch).

        An augmented view is a pure function of (seed, item, epoch modulo `views`). drop_last drops a short last batch,
        unless it is the only one.
        """
        order, view = list(range(len(self))), None
        if seed is not None:
            if shuffle:
                order = torch.randperm(len(self), generator=generator(seed, "order", epoch)).tolist()
            view = None if self.augment == "none" else (seed, epoch if views is None else epoch % views)
        for begin in range(0, len(order), size):
            chosen = order[begin : begin + size]
            if drop_last and begin and len(chosen) < size:
                return
            yield self._batch(chosen, view)

    def _batch(self, chosen: list[int], view: tuple[int, int] | None) -> Batch:
        items = [self.items[i] for i in chosen]
        images = picked(items, [view and View(self.augment, number(*view, item.name)) for item in items])
        domains = None if self.domains is None else torch.tensor([self.domains[i] for i in chosen])
        return Batch(images, torch.tensor([self.labels[i] for i in chosen]), self.names, domains)


@dataclass(frozen=True)
class Lesson:
    """All that a method is ever shown of a stage.

    memory: items of earlier lessons that were kept to be rehearsed. index, total: which of how many lessons. announced:
    False for a stream whose images come in their own order, each once, without a word on where one task ends.
    """

    train: Split
    val: Split | None = None
    unlabelled: Split | None = None
    memory: Split | None = None
    index: int = 0
    total: int | None = 1
    announced: bool = True

    def empty(self) -> "Lesson":
        """The same without items: what a method needs to have the shape that this lesson gave it."""
        return replace(self, train=Split((), (), self.train.names), val=None, unlabelled=None, memory=None)


@dataclass(frozen=True)
class Stage:
    """A lesson and its tests by name; the tests are the evaluator's alone.

    ahead: tests of what is still to come, after the lesson; before: tests that are made before the first lesson. Both
    are only for methods that can answer about classes they never met.
    """

    lesson: Lesson
    tests: dict[str, Split]
    ahead: dict[str, Split] = field(default_factory=dict)
    before: dict[str, Split] = field(default_factory=dict)
