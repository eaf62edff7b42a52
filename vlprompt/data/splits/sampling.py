"""Sample splits, shots, and base and new classes with the rules of the literature; pure functions of a seed."""

import random
from collections.abc import Sequence
from dataclasses import replace

from vlprompt.core.batch import Split
from vlprompt.data.dataset import ImageRecord
from vlprompt.data.splits.names import SPLIT_NAMES


def add_validation_split(
    records: dict[str, list[ImageRecord]], val_fraction: float = 0.2
) -> tuple[dict[str, list[ImageRecord]], str]:
    """Hold out a fraction of train as val, unless there is a val already.

    Returns:
        The records by split, and a note on their origin.
    """
    note = "train and test as the data have them"
    if records.get("val"):
        return records, note
    fraction_text = {0.1: "a tenth", 0.2: "a fifth"}.get(val_fraction, f"{val_fraction:.0%}")
    train_and_val = split_per_class(records["train"], (1 - val_fraction, val_fraction))
    return {**train_and_val, "test": records["test"]}, f"{note}; {fraction_text} of train is val"


def sample_few_shot(train: Split, val: Split | None, shots: int, seed: int) -> tuple[Split, Split | None]:
    """Sample `shots` items per class of train and min(shots, 4) of val, bit for bit as CoOp's code does.

    One random stream serves train and then val; classes come in the order of their first item. A class with fewer
    items gives all of them and is listed in `info["undersized_classes"]`.

    Raises:
        ValueError: for shots < 1, an empty train split and a class without items.
    """
    if shots < 1:
        raise ValueError(f"task.shots: expected at least 1, got {shots}. Set task.shots=1 or more.")
    if not len(train):
        raise ValueError(
            "dataset: expected training images, got a dataset for testing only. Train on another one and test on it "
            "by `vlprompt eval`, or use a method without training, with task.shots=null."
        )
    rng = random.Random(seed)
    counts = [(str(name), count) for name, count in zip(train.names, train.count_per_class(), strict=True)]
    if missing := [name for name, count in counts if not count]:
        raise ValueError(
            "dataset: expected training images of every class, got none of "
            f"{missing[0]!r}{f' and {len(missing) - 1} more' if missing[1:] else ''}. Add some, or remove the class."
        )
    sample = train.select(_sample_per_class(train.labels, shots, rng))
    if undersized := [name for name, count in counts if count < shots]:
        sample = replace(sample, info=sample.info | {"undersized_classes": undersized})
    return sample, None if val is None else val.select(_sample_per_class(val.labels, min(shots, 4), rng))


def _sample_per_class(labels: Sequence[int], shots: int, rng: random.Random) -> list[int]:
    sampled = []
    for indices in _group_by_label(labels).values():
        sampled += rng.sample(indices, shots) if len(indices) >= shots else indices
    return sampled


def _group_by_label(labels: Sequence[int]) -> dict[int, list[int]]:
    """Return the indices of each label, in the order of first occurrence."""
    indices_by_label: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        indices_by_label.setdefault(label, []).append(i)
    return indices_by_label


def split_base_new(n_classes: int) -> tuple[list[int], list[int]]:
    """Return the labels of the base classes, the first ceil(n / 2), and of the new classes, the rest."""
    if n_classes < 4:
        raise ValueError(
            f"dataset: expected at least 4 classes for base and new classes, two in each half, got {n_classes}. Use a "
            "dataset with more classes."
        )
    middle = (n_classes + 1) // 2
    return list(range(middle)), list(range(middle, n_classes))


def hold_out(train: Split, fraction: float) -> tuple[Split, Split]:
    """Hold out a fraction of each class, at least one item where a class has two; deterministic.

    Returns:
        The remaining split and the held-out split.

    Raises:
        ValueError: if no class has two items.
    """
    val_indices = set[int]()
    for label, indices in _group_by_label(train.labels).items():
        count = min(max(1, round(fraction * len(indices))), len(indices) - 1)
        val_indices |= set(random.Random(label).sample(indices, count))
    if not val_indices:
        raise ValueError(
            "dataset: expected a class with two or more training images to hold one out for validation, got one "
            "image per class. Add some."
        )
    train_indices = [i for i in range(len(train)) if i not in val_indices]
    return train.select(train_indices), train.select(sorted(val_indices))


def split_per_class(
    records: Sequence[ImageRecord], fractions: tuple[float, ...] = (0.5, 0.2, 0.3)
) -> dict[str, list[ImageRecord]]:
    """Divide each class by these fractions into train, val (and test), after a shuffle seeded with its size.

    50 : 20 : 30 is CoOp's rule for sets without a split, 0.8 : 0.2 its rule for a train split without val. The classes
    come in the order of their first record.
    """
    splits: dict[str, list[ImageRecord]] = {name: [] for name in SPLIT_NAMES[: len(fractions)]}
    records_by_class: dict[str, list[ImageRecord]] = {}
    for record in records:
        records_by_class.setdefault(record.class_id, []).append(record)
    for class_records in records_by_class.values():
        size = len(class_records)
        random.Random(size).shuffle(class_records)
        train_end = max(1, round(fractions[0] * size))
        val_end = train_end + round(fractions[1] * size) if "test" in splits else size
        val_end = min(val_end, size - 1) if "test" in splits and size > 1 else val_end
        splits["train"] += class_records[:train_end]
        splits["val"] += class_records[train_end:val_end]
        if "test" in splits:
            splits["test"] += class_records[val_end:]
    return splits
