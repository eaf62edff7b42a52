"""Choosing items: shots, and base and new classes; pure functions of a seed, by the rules of the literature."""

import random
from collections.abc import Sequence

from vlprompt.stage import Split


def few_shot(train: Split, val: Split | None, shots: int, seed: int) -> tuple[Split, Split | None]:
    """`shots` items per class of train and min(shots, 4) of val, drawn as CoOp's code does, bit for bit.

    One random stream serves train and then val; classes come in the order of their first item. A class that has fewer
    items gives all of them (and `info["short"]` names it); ValueError for shots < 1 or a class without items.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, not {shots}")
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
