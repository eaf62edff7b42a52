"""Items, images or passages, as what a tower is given; and the order in which texts of like length stand together."""

from collections.abc import Sequence
from typing import Any

import torch

from vlprompt.images import Images, View, generator, picked
from vlprompt.passages import Passage, Passages


def inputs_of(items: Sequence[Any], views: Sequence[View | None]) -> Images | Passages:
    """What a tower is given: images, each in its view, or passages."""
    return Passages(tuple(items)) if items and isinstance(items[0], Passage) else picked(items, views)


def by_length(items: Sequence[Any], order: list[int], size: int, *seed: int) -> list[int]:
    """An order of passages in which those of a batch are of like length: sorted within every 50 batches.

    The batches themselves stand in a random order, the short one last: the last of `order`, whatever their length, so
    that it is not always the longest that a loop leaves out. Images stay as they are.
    """
    if not items or not isinstance(items[0], Passage):
        return order
    batches, full = list[list[int]](), len(order) // size * size
    for begin in range(0, full, 50 * size):
        some = sorted(order[begin : min(begin + 50 * size, full)], key=lambda i: items[i].size)
        batches += [some[at : at + size] for at in range(0, len(some), size)]
    mixed = torch.randperm(len(batches), generator=generator("batches", *seed)).tolist()
    return [i for k in mixed for i in batches[k]] + order[full:]
