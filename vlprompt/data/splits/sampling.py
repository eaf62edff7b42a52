"""Choosing items: parts, shots, base and new classes; pure functions of a seed, by the rules of the literature."""

import random
from collections.abc import Sequence

from vlprompt.core.batch import Split
from vlprompt.data.dataset import Row

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def with_val(rows: dict[str, list[Row]], share: float = 0.2) -> tuple[dict[str, list[Row]], str]:
    """train and test as they are given, and a share of train as val unless there is one; and the note that says so."""
    note = "train and test as the data have them"
    if rows.get("val"):
        return rows, note
    part = {0.1: "a tenth", 0.2: "a fifth"}.get(share, f"{share:.0%}")
    return {**cut(rows["train"], (1 - share, share)), "test": rows["test"]}, f"{note}; {part} of train is val"


def few_shot(train: Split, val: Split | None, shots: int, seed: int) -> tuple[Split, Split | None]:
    """`shots` items per class of train and min(shots, 4) of val, drawn as CoOp's code does, bit for bit.

    One random stream serves train and then val; classes come in the order of their first item. A class that has fewer
    items gives all of them (and `info["short"]` names it); ValueError for shots < 1 or a class without items.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, not {shots}")
    if not len(train):
        raise ValueError(
            "this dataset is a test only and has no training images: train on another one and test on it by "
            "`vlprompt eval`, or take a method that trains nothing, with task.shots=null"
        )
    stream = random.Random(seed)
    if missing := [str(n) for n, c in zip(train.names, train.count(), strict=True) if not c]:
        raise ValueError(
            f"no training image for the class {missing[0]!r}{f' and {len(missing) - 1} more' if missing[1:] else ''}"
        )
    short = [str(n) for n, c in zip(train.names, train.count(), strict=True) if c < shots]
    drawn = train.of(_draw(train.labels, shots, stream))
    drawn = Split(
        drawn.items,
        drawn.labels,
        drawn.names,
        drawn.domains,
        drawn.augment,
        drawn.info | ({"short": short} if short else {}),
    )
    return drawn, None if val is None else val.of(_draw(val.labels, min(shots, 4), stream))


def _draw(labels: Sequence[int], shots: int, stream: random.Random) -> list[int]:
    places: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        places.setdefault(label, []).append(i)
    chosen = []
    for of_class in places.values():
        chosen += stream.sample(of_class, shots) if len(of_class) >= shots else of_class
    return chosen


def halves(classes: int) -> tuple[list[int], list[int]]:
    """Base and new classes: the first ceil(n / 2) labels and the rest."""
    if classes < 4:
        raise ValueError(f"base and new classes need at least 4 classes, two in each half, not {classes}")
    middle = (classes + 1) // 2
    return list(range(middle)), list(range(middle, classes))


def held_out(train: Split, share: float) -> tuple[Split, Split]:
    """What stays and what is held out: this share of each class, one at least where it has two; always the same.

    ValueError when no class has two.
    """
    places: dict[int, list[int]] = {}
    for i, label in enumerate(train.labels):
        places.setdefault(label, []).append(i)
    held = set[int]()
    for label, of_class in places.items():
        count = min(max(1, round(share * len(of_class))), len(of_class) - 1)
        held |= set(random.Random(label).sample(of_class, count))
    if not held:
        raise ValueError("every class has one training image only, so none can be held out to validate; add some")
    return train.of([i for i in range(len(train)) if i not in held]), train.of(sorted(held))


def cut(rows: Sequence[Row], shares: tuple[float, ...] = (0.5, 0.2, 0.3)) -> dict[str, list[Row]]:
    """Each class cut by these shares into train, val (and test), after a shuffle that depends only on its size.

    50 : 20 : 30 is CoOp's rule for sets without a split, 0.8 : 0.2 its rule for a train part without val. The classes
    come in the order of their first row.
    """
    parts: dict[str, list[Row]] = {name: [] for name in ("train", "val", "test")[: len(shares)]}
    classes: dict[str, list[Row]] = {}
    for row in rows:
        classes.setdefault(row.id, []).append(row)
    for of_class in classes.values():
        random.Random(len(of_class)).shuffle(of_class)
        first = max(1, round(shares[0] * len(of_class)))
        second = first + round(shares[1] * len(of_class)) if "test" in parts else len(of_class)
        second = min(second, len(of_class) - 1) if "test" in parts and len(of_class) > 1 else second
        parts["train"] += of_class[:first]
        parts["val"] += of_class[first:second]
        if "test" in parts:
            parts["test"] += of_class[second:]
    return parts
