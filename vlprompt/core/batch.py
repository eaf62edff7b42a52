"""Values that flow from data to methods: batches, splits, lessons and stages (images: images.py, names: name.py)."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlprompt.core.class_names import Names, ids
from vlprompt.core.images import Images, Item, View, picked
from vlprompt.core.texts import Passage, Passages
from vlprompt.runtime.seeding import generator, number


@dataclass(frozen=True)
class Batch:
    """inputs: Images or Passages; labels (B,) are places in `names`; domains (B,); progress of training in 0..1.

    unlabelled: images without labels, seen beside the others. Either may be without images, never both.
    """

    inputs: Any
    labels: Tensor
    names: Names
    domains: Tensor | None = None
    unlabelled: "Batch | None" = None
    step: int = 0
    progress: float = 0.0

    @property
    def rows(self) -> int:
        """How many images it is about: the labelled ones, or where there are none the others."""
        return len(self.inputs) or (0 if self.unlabelled is None else len(self.unlabelled.inputs))

    def split(self, size: int | None) -> "list[Batch]":
        """Micro-batches of at most `size` items, and as many unlabelled ones, that make up this one."""
        most = max(len(self.inputs), 0 if self.unlabelled is None else len(self.unlabelled.inputs))
        if size is None or size >= most:
            return [self]
        return [self._part(begin, begin + size) for begin in range(0, most, size)]

    def _part(self, begin: int, end: int) -> "Batch":
        beside = None if self.unlabelled is None else self.unlabelled._part(begin, end)
        return replace(self, inputs=self.inputs.part(begin, end), labels=self.labels[begin:end],
                       domains=None if self.domains is None else self.domains[begin:end],
                       unlabelled=beside if beside is not None and len(beside.inputs) else None)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Items with labels (places in `names`), a domain each where there are domains, and how training views are made.

    Items are images or passages; of passages that are answered by text or word by word, the labels say nothing.
    """

    items: tuple[Any, ...]
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

    def plus(self, more: "Split") -> "Split":
        """The items of both, among its own names and then those that only the other has."""
        known = ids(self.names)
        names = (*self.names, *(n for n, i in zip(more.names, ids(more.names), strict=True) if i not in known))
        place = {i: label for label, i in enumerate(ids(names))}
        labels = (*self.labels, *(place[ids(more.names)[label]] for label in more.labels))
        domains = None if self.domains is None or more.domains is None else self.domains + more.domains
        return replace(self, items=self.items + more.items, labels=labels, names=names, domains=domains)

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
                order = by_length(self.items, order, size, seed, epoch)
            view = None if self.augment == "none" else (seed, epoch if views is None else epoch % views)
        for begin in range(0, len(order), size):
            chosen = order[begin : begin + size]
            if drop_last and begin and len(chosen) < size:
                return
            yield self._batch(chosen, view)

    def _batch(self, chosen: list[int], view: tuple[int, int] | None) -> Batch:
        items = [self.items[i] for i in chosen]
        images = inputs_of(items, [view and View(self.augment, number(*view, item.name)) for item in items])
        domains = None if self.domains is None else torch.tensor([self.domains[i] for i in chosen])
        return Batch(images, torch.tensor([self.labels[i] for i in chosen]), self.names, domains)


@dataclass(frozen=True)
class Unlabelled:
    """Images of which nobody says what they show; they are among the classes `names`.

    Not even their keys, their names or their order tell, if `data.hidden` made them.
    """

    items: tuple[Item, ...]
    names: Names
    augment: str = "none"

    def __len__(self) -> int:
        return len(self.items)

    def hash(self) -> str:
        """Tells these images from others, wherever they lie."""
        return hashlib.sha256(repr([item.name for item in self.items]).encode()).hexdigest()[:16]

    def batches(self, size: int) -> Iterator[Batch]:
        """All of them in order, as they are."""
        for begin in range(0, len(self), size):
            items = self.items[begin : begin + size]
            yield self._batch(items, [None] * len(items))

    def drawn(self, size: int, seed: int, views: int | None = None, step: int = 0) -> Iterator[Batch]:
        """Batches without an end, from the step-th on: pass after pass, each in an order of its own.

        What does not fill a batch is left to the next pass. A view is a pure function of (seed, item, pass modulo
        `views`).
        """
        size = min(size, len(self))
        each = len(self) // size
        while True:
            turn, place = divmod(step, each)
            order = torch.randperm(len(self), generator=generator(seed, "order of the unlabelled", turn)).tolist()
            for k in range(place, each):
                items = [self.items[i] for i in order[k * size : (k + 1) * size]]
                view = (seed, turn if views is None else turn % views)
                plain = self.augment == "none"
                yield self._batch(items, [None if plain else View(self.augment, number(*view, i.name)) for i in items])
                step += 1

    def _batch(self, items: Sequence[Item], views: Sequence[View | None]) -> Batch:
        return Batch(picked(items, views), torch.empty(0, dtype=torch.long), self.names)


def inputs_of(items: Sequence[Any], views: Sequence[View | None]) -> Images | Passages:
    """What a tower is given: images, each in its view, or passages."""
    return Passages(tuple(items)) if items and isinstance(items[0], Passage) else picked(items, views)


def by_length(items: Sequence[Any], order: list[int], size: int, *seed: int) -> list[int]:
    """An order of passages in which those of a batch are of like length: sorted within every 50 batches.

    The batches themselves stand in a random order, a short one last, which is of any length: what is dropped with it is
    not always the longest texts. Images stay as they are.
    """
    if not items or not isinstance(items[0], Passage):
        return order
    whole, batches = len(order) // size * size, list[list[int]]()
    for begin in range(0, whole, 50 * size):
        some = sorted(order[begin : min(begin + 50 * size, whole)], key=lambda i: items[i].size)
        batches += [some[at : at + size] for at in range(0, len(some), size)]
    mixed = torch.randperm(len(batches), generator=generator("batches", *seed)).tolist()
    return [i for k in mixed for i in batches[k]] + order[whole:]
