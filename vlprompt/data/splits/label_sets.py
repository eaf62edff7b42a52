"""Training labels of items that may have several: few shots of each class, and a known share of all entries."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from vlprompt.core.batch import UNKNOWN, Split
from vlprompt.runtime.seeding import make_generator


def sample_label_sets(train: Split, val: Split | None, shots: int, seed: int) -> tuple[Split, Split | None]:
    """Sample items until each class has `shots` of train and min(shots, 4) of val, in the order of the classes.

    Items drawn for a class before count for the later ones, so that a class may have more. One with fewer items gives
    all of them and is listed in `info["undersized_classes"]`.

    Raises:
        ValueError: for shots < 1.
    """
    if shots < 1:
        raise ValueError(f"task.shots: expected at least 1, got {shots}. Set task.shots=1 or more.")
    rng = random.Random(seed)
    sample = train.select(_sample_by_class(train.labels, shots, rng))
    counts = zip(train.names, train.count_per_class(), strict=True)
    if undersized := [str(name) for name, count in counts if count < shots]:
        sample = replace(sample, info=sample.info | {"undersized_classes": undersized})
    return sample, None if val is None else val.select(_sample_by_class(val.labels, min(shots, 4), rng))


def _sample_by_class(rows: Sequence[Sequence[int]], shots: int, rng: random.Random) -> list[int]:
    sampled = list[int]()
    for label in range(len(rows[0]) if rows else 0):
        n_missing = shots - sum(rows[i][label] == 1 for i in sampled)
        others = [i for i in range(len(rows)) if rows[i][label] == 1 and i not in sampled]
        sampled += rng.sample(others, min(max(n_missing, 0), len(others)))
    return sampled


def hide_entries(split: Split, known: float, seed: int) -> Split:
    """Return the split where each entry, present or absent, is known with this probability, else UNKNOWN.

    What is known of an item is a pure function of (seed, its name, the number of classes).
    """
    if known >= 1:
        return split
    rows = list[tuple[int, ...]]()
    for item, row in zip(split.items, split.labels, strict=True):
        is_known = torch.rand(len(row), generator=make_generator(seed, "known labels", item.name)) < known
        rows.append(tuple(v if k else UNKNOWN for v, k in zip(row, is_known.tolist(), strict=True)))
    return replace(split, labels=tuple(rows))
