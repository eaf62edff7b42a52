"""Splits and batches of items that may have several labels."""

from dataclasses import replace

import pytest
import torch
from shared import images

from vlprompt.core.batch import Batch, Split
from vlprompt.core.images import ImageItem


def split_of(labels, names=("cat", "dog", "bird")):
    items = tuple(ImageItem(f"{i}", lambda look, view: torch.zeros(3, 2, 2), f"{i}") for i in range(len(labels)))
    return Split(items, tuple(labels), names)


def test_rows_of_labels_travel_with_their_items():
    split = split_of([(1, 0, -1), (0, 0, 0), (1, 1, 0)])
    assert split.has_several_labels
    assert not split_of([0, 1]).has_several_labels
    assert split.count_per_class() == [2, 1, 0]
    assert split.select([2, 0]).labels == ((1, 1, 0), (1, 0, -1))
    chosen = split.select_classes([2, 0])
    assert (chosen.labels, chosen.names) == (((-1, 1), (0, 0), (0, 1)), ("bird", "cat"))
    [batch] = split.batches(10)
    assert batch.has_several_labels
    assert batch.labels.tolist() == [[1, 0, -1], [0, 0, 0], [1, 1, 0]]
    assert [part.labels.tolist() for part in batch.micro_batches(2)] == [[[1, 0, -1], [0, 0, 0]], [[1, 1, 0]]]
    assert split.concat(split).labels == split.labels * 2
    assert split.hash() != split_of([(1, 0, 0), (0, 0, 0), (1, 1, 0)]).hash()
    assert not Batch(images(torch.zeros(1, 3, 2, 2)), torch.tensor([1]), ("cat", "dog")).has_several_labels


def test_an_empty_split_gives_its_names_alone():
    rows, more = [(1, 0, -1), (0, 0, 1)], ("bird", "fish")
    several = replace(split_of(rows), reading="contrastive")
    for labels, joined in (
        (((1, 0, -1, -1), (0, 0, 1, -1)), several.concat(split_of([], more))),
        (((-1, -1, 1, 0), (1, -1, 0, 0)), split_of([], more).concat(several)),
    ):
        assert joined.labels == labels
        assert joined.reading == "contrastive"
        assert set(joined.names) == {"cat", "dog", "bird", "fish"}
        [batch] = joined.batches(4)
        assert batch.labels.shape == (2, 4)
        assert sum(joined.count_per_class()) == 2
    assert split_of([], more).concat(split_of([2, 0])).labels == (0, 2)
    assert split_of([2, 0]).concat(split_of([], more)).labels == (2, 0)
    assert split_of([]).concat(split_of([], more)).names == ("cat", "dog", "bird", "fish")


@pytest.mark.parametrize("other", [split_of([0, 1, 2]), split_of([(1, 0)], ("cat", "dog"))])
def test_other_kinds_of_labels_are_not_joined(other):
    with pytest.raises(ValueError, match="split: expected items with several labels among the same classes"):
        split_of([(1, 0, -1)]).concat(other)
