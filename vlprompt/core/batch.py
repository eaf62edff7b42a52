"""Splits of items with labels, and the batches that are made of them."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Augmentation, ImageItem, build_images
from vlprompt.core.texts import TextBatch, TextItem
from vlprompt.runtime.seeding import derive_seed, make_generator

Item: TypeAlias = Any  # ImageItem or TextItem; a split has one kind, which its users know
Inputs: TypeAlias = Any  # Images or a TextBatch, likewise; a text tower takes the texts of the classes
# (logits (B, C) in float32, labels, reduction="mean" or "none") -> mean, or one loss per row
LabelLoss: TypeAlias = Callable[..., Tensor]
Label: TypeAlias = Any  # an index into the class names, or a row (C,) of 1, 0 and UNKNOWN; a split has one kind
Reading = Literal["sigmoid", "contrastive"]
UNKNOWN = -1  # in a row of labels, beside 1 (present) and 0 (absent)
BATCHES_PER_LENGTH_GROUP = 50  # batches among which texts are sorted by length


@dataclass(frozen=True)
class Batch:
    """A batch of inputs with labels, perhaps with unlabelled images.

    Args:
        inputs: images or texts; may be empty if there are unlabelled ones.
        labels: (B,), indices into `names`; or (B, C) of 1, 0 and -1 (unknown) where an item may have several.
        names: class names.
        domains: (B,), indices of domains.
        unlabelled: images without labels, for methods that learn from them.
        step: number of the training step.
        progress: of the training, from 0 to 1.
        label_loss: by which methods learn from labels, as `train.loss` says; called as F.cross_entropy is.
    """

    inputs: Inputs
    labels: Tensor
    names: Names
    domains: Tensor | None = None
    unlabelled: "Batch | None" = None
    step: int = 0
    progress: float = 0.0
    label_loss: LabelLoss = F.cross_entropy

    @property
    def has_several_labels(self) -> bool:
        """Whether an item may have several labels."""
        return self.labels.ndim == 2

    @property
    def n_items(self) -> int:
        """The number of labelled items, or of unlabelled ones if there are no others."""
        return len(self.inputs) or (0 if self.unlabelled is None else len(self.unlabelled.inputs))

    def micro_batches(self, size: int | None) -> "list[Batch]":
        """Split into micro-batches of at most `size` items and as many unlabelled ones."""
        n = max(len(self.inputs), 0 if self.unlabelled is None else len(self.unlabelled.inputs))
        if size is None or size >= n:
            return [self]
        return [self._slice(begin, begin + size) for begin in range(0, n, size)]

    def _slice(self, begin: int, end: int) -> "Batch":
        unlabelled = None if self.unlabelled is None else self.unlabelled._slice(begin, end)
        return replace(
            self,
            inputs=self.inputs.slice(begin, end),
            labels=self.labels[begin:end],
            domains=None if self.domains is None else self.domains[begin:end],
            unlabelled=unlabelled if unlabelled is not None and len(unlabelled.inputs) else None,
        )


@dataclass(frozen=True)
class Split:
    """Items with labels.

    Args:
        items: images or texts.
        labels: indices into `names`; meaningless for texts with responses or tags. Where an item may have several, a
            row (C,) of 1, 0 and -1 (unknown) for each.
        names: class names.
        domains: the index of each item's domain.
        augment: kind of augmentation in training, "none" for none.
        info: facts about the split, for the result.
        reading: of logits as the odds of each of several labels: sigmoid takes them as they are, contrastive compares
            each class with the others, as the softmax does.
    """

    items: tuple[Item, ...]
    labels: tuple[Label, ...]
    names: Names
    domains: tuple[int, ...] | None = None
    augment: str = "none"
    info: dict[str, object] = field(default_factory=dict, compare=False)
    reading: Reading = "sigmoid"

    def __len__(self) -> int:
        return len(self.items)

    @property
    def has_several_labels(self) -> bool:
        """Whether an item may have several labels."""
        return bool(self.labels) and isinstance(self.labels[0], tuple)

    def list_labels(self, index: int) -> Names:
        """Return the classes of an item, of several labels those that are present."""
        label = self.labels[index]
        if not self.has_several_labels:
            return (self.names[label],)
        return tuple(name for name, state in zip(self.names, label, strict=True) if state == 1)

    def select(self, indices: Sequence[int]) -> "Split":
        """Return the items at these indices."""
        return replace(
            self,
            items=tuple(self.items[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            domains=None if self.domains is None else tuple(self.domains[i] for i in indices),
        )

    def select_classes(self, class_indices: Sequence[int]) -> "Split":
        """Return the items of these classes, renumbered in the given order; with several labels all items."""
        names = tuple(self.names[i] for i in class_indices)
        if self.has_several_labels:
            return replace(self, labels=tuple(tuple(row[i] for i in class_indices) for row in self.labels), names=names)
        renumbered = {label: i for i, label in enumerate(class_indices)}
        selected = self.select([i for i, label in enumerate(self.labels) if label in renumbered])
        labels = tuple(renumbered[label] for label in selected.labels)
        return replace(selected, labels=labels, names=names)

    def concat(self, other: "Split") -> "Split":
        """Return the items of both, with names that only the other has behind those of this split.

        An empty split gives its names alone, whichever kind its labels would have; of items with several labels these
        are unknown.

        Raises:
            ValueError: for items of one label beside items of several, or those among other classes.
        """
        self._require_same_kind(other)
        known_ids = set(class_ids(self.names))
        names = (*self.names, *(n for n in other.names if class_ids((n,))[0] not in known_ids))
        domains = None if self.domains is None or other.domains is None else self.domains + other.domains
        return replace(
            self,
            items=self.items + other.items,
            labels=self._place_labels(names) + other._place_labels(names),
            names=names,
            domains=domains,
            reading=self.reading if len(self) or not len(other) else other.reading,
        )

    def _place_labels(self, names: Names) -> tuple[Label, ...]:
        """Return the labels as places among `names`, which have those of the split; of several, others are unknown."""
        label_of_id = {key: label for label, key in enumerate(class_ids(names))}
        places = [label_of_id[key] for key in class_ids(self.names)]
        if not self.has_several_labels:
            return tuple(places[label] for label in self.labels)
        rows = [dict(zip(places, row, strict=True)) for row in self.labels]
        return tuple(tuple(row.get(place, UNKNOWN) for place in range(len(names))) for row in rows)

    def _require_same_kind(self, other: "Split") -> None:
        has_several = self.has_several_labels or other.has_several_labels
        if not len(self) or not len(other) or not has_several:
            return
        if self.has_several_labels != other.has_several_labels or class_ids(self.names) != class_ids(other.names):
            raise ValueError(
                "split: expected items with several labels among the same classes, got a split of other labels or "
                "classes. Join splits of one dataset."
            )

    def count_per_class(self) -> list[int]:
        """Count the items of each class."""
        counts = [0] * len(self.names)
        if self.has_several_labels:
            return [sum(row[k] == 1 for row in self.labels) for k in range(len(counts))]
        for label in self.labels:
            counts[label] += 1
        return counts

    def hash(self) -> str:
        """Hash the names of items, labels, class names, ids and domains, in order; independent of where files lie."""
        content = (
            [item.name for item in self.items],
            self.labels,
            [str(n) for n in self.names],
            class_ids(self.names),
            self.domains,
        )
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        n_augmentations: int | None = None,
        drop_last: bool = False,
        shuffle: bool = True,
    ) -> Iterator[Batch]:
        """Yield batches: augmented and shuffled by (seed, epoch), or plain and in order without a seed.

        An augmentation is a pure function of (seed, item, epoch modulo n_augmentations).

        Args:
            batch_size: items per batch.
            seed: of the order and the augmentations; None for evaluation.
            epoch: number of the epoch.
            n_augmentations: augmentations per image, None for a new one in each epoch.
            drop_last: drop a short last batch, unless it is the only one.
            shuffle: False keeps the order.
        """
        order, seed_and_epoch = list(range(len(self))), None
        if seed is not None:
            if shuffle:
                order = torch.randperm(len(self), generator=make_generator(seed, "order", epoch)).tolist()
                order = group_by_length(self.items, order, batch_size, seed, epoch)
            if self.augment != "none":
                seed_and_epoch = (seed, epoch if n_augmentations is None else epoch % n_augmentations)
        for begin in range(0, len(order), batch_size):
            indices = order[begin : begin + batch_size]
            if drop_last and begin and len(indices) < batch_size:
                return
            yield self._build_batch(indices, seed_and_epoch)

    def _build_batch(self, indices: list[int], seed_and_epoch: tuple[int, int] | None) -> Batch:
        items = [self.items[i] for i in indices]
        inputs = build_inputs(items, _draw_augmentations(items, self.augment, seed_and_epoch))
        domains = None if self.domains is None else torch.tensor([self.domains[i] for i in indices])
        labels = torch.tensor([self.labels[i] for i in indices])
        return Batch(inputs, labels, self.names, domains)


@dataclass(frozen=True)
class Unlabelled:
    """Images without labels, of the classes `names`.

    If `data.splits.label_hiding` made them, neither keys nor names nor order reveal a label.
    """

    items: tuple[ImageItem, ...]
    names: Names
    augment: str = "none"

    def __len__(self) -> int:
        return len(self.items)

    def hash(self) -> str:
        """Hash the names of items; independent of where files lie."""
        return hashlib.sha256(repr([item.name for item in self.items]).encode()).hexdigest()[:16]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield batches in order, without augmentation."""
        for begin in range(0, len(self), batch_size):
            yield self._build_batch(self.items[begin : begin + batch_size], None)

    def sample_batches(
        self, batch_size: int, seed: int, n_augmentations: int | None = None, step: int = 0
    ) -> Iterator[Batch]:
        """Yield batches without an end: epoch after epoch, each in an order of its own, without short batches.

        An augmentation is a pure function of (seed, item, epoch modulo n_augmentations).

        Args:
            batch_size: images per batch, clipped to the number of images.
            seed: of the orders and the augmentations.
            n_augmentations: augmentations per image, None for a new one in each epoch.
            step: number of the first batch.
        """
        batch_size = min(batch_size, len(self))
        batches_per_epoch = len(self) // batch_size
        while True:
            epoch, first = divmod(step, batches_per_epoch)
            order = torch.randperm(len(self), generator=make_generator(seed, "order of the unlabelled", epoch)).tolist()
            seed_and_epoch = (seed, epoch if n_augmentations is None else epoch % n_augmentations)
            for k in range(first, batches_per_epoch):
                items = [self.items[i] for i in order[k * batch_size : (k + 1) * batch_size]]
                yield self._build_batch(items, None if self.augment == "none" else seed_and_epoch)
                step += 1

    def _build_batch(self, items: Sequence[ImageItem], seed_and_epoch: tuple[int, int] | None) -> Batch:
        images = build_images(items, _draw_augmentations(items, self.augment, seed_and_epoch))
        return Batch(images, torch.empty(0, dtype=torch.long), self.names)


def _draw_augmentations(
    items: Sequence[Item], kind: str, seed_and_epoch: tuple[int, int] | None
) -> list[Augmentation | None]:
    if seed_and_epoch is None:
        return [None] * len(items)
    return [Augmentation(kind, derive_seed(*seed_and_epoch, item.name)) for item in items]


def build_inputs(items: Sequence[Item], augmentations: Sequence[Augmentation | None]) -> Inputs:
    """Build the inputs of a tower: images with their augmentations, or texts."""
    if items and isinstance(items[0], TextItem):
        return TextBatch(tuple(items))
    return build_images(items, augmentations)


def group_by_length(items: Sequence[Item], order: list[int], batch_size: int, *seed: int) -> list[int]:
    """Reorder texts so that those of a batch have similar lengths; the order of images stays.

    Texts are sorted within every 50 batches, and batches shuffled. A short last batch is not sorted, so that dropping
    it does not always drop the longest texts.
    """
    if not items or not isinstance(items[0], TextItem):
        return order
    n_full, group_size = len(order) // batch_size * batch_size, BATCHES_PER_LENGTH_GROUP * batch_size
    batches = list[list[int]]()
    for begin in range(0, n_full, group_size):
        group = sorted(order[begin : min(begin + group_size, n_full)], key=lambda i: items[i].n_characters)
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    batch_order = torch.randperm(len(batches), generator=make_generator("batches", *seed)).tolist()
    return [i for k in batch_order for i in batches[k]] + order[n_full:]
