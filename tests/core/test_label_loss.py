"""Losses of several labels against their definitions, in float64, and splits and batches that carry such labels."""

import math

import pytest
import torch
from conftest import images

from vlprompt.core.batch import Batch, Split
from vlprompt.core.images import ImageItem
from vlprompt.core.labels.label_loss import LabelLoss

LABELS = torch.tensor([[1, 0, -1], [0, -1, -1], [1, 1, 0], [-1, -1, -1]])
LOGITS = torch.tensor([[0.3, -1.2, 2.0], [4.0, 0.1, -0.7], [-2.5, 0.9, 0.0], [1.0, 2.0, 3.0]])


def entries(loss, logits, labels):
    """The loss of each known entry, written out one by one in Python's own floats, by item."""
    rows = []
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        row = []
        for k, label in enumerate(y):
            if loss.reading == "contrastive":
                odds = z[k] - math.log(sum(math.exp(other) for j, other in enumerate(z) if j != k))
            else:
                odds = z[k]
            p = 1 / (1 + math.exp(-odds))
            label = 0 if label == -1 and loss.unknown == "negative" else label
            if label == -1:
                continue
            if loss.kind != "asl":
                row.append(-math.log(p if label else 1 - p))
            elif label:
                row.append(-((1 - p) ** loss.gamma_positive) * math.log(max(p, loss.epsilon)))
            else:
                q = min(1 - p + loss.margin, 1)
                row.append(-((1 - q) ** loss.gamma_negative) * math.log(max(q, loss.epsilon)))
        rows.append(row)
    return rows


@pytest.mark.parametrize("unknown", ["ignore", "negative"])
@pytest.mark.parametrize("reading", ["sigmoid", "contrastive"])
@pytest.mark.parametrize("kind", ["bce", "partial_bce", "asl"])
def test_losses_are_their_definitions(kind, unknown, reading):
    loss = LabelLoss(kind, unknown, weight=1.5, reading=reading)
    rows = entries(loss, LOGITS, LABELS)
    expected, count = {
        "bce": (sum(map(sum, rows)) / sum(map(len, rows)), sum(map(len, rows))),
        "partial_bce": (sum(sum(row) / max(len(row), 1) for row in rows) / 4, 4),
        "asl": (sum(map(sum, rows)) / 4, 4),
    }[kind]
    value, n = loss(LOGITS, LABELS)
    assert n == count
    assert value.item() == pytest.approx(1.5 * expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["bce", "partial_bce", "asl"])
def test_parts_of_a_batch_add_up(kind):
    loss = LabelLoss(kind)
    whole, n = loss(LOGITS, LABELS)
    parts = [loss(LOGITS[i : i + 1], LABELS[i : i + 1]) for i in range(4)]
    assert sum(value.item() * count for value, count in parts) == pytest.approx(whole.item() * n, rel=1e-5)


def test_the_weights_of_focusing_have_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    LabelLoss("asl", margin=0.0)(logits, LABELS)[0].backward()
    p = LOGITS.sigmoid()
    of_present, of_absent = -(1 - p) * (1 - p), p**2 * p  # focus times the gradient of the logarithm
    expected = torch.where(LABELS == 1, of_present, of_absent) * (LABELS >= 0) / 4
    assert torch.allclose(logits.grad, expected, atol=1e-6)


def test_an_item_of_which_nothing_is_known_changes_nothing():
    logits = LOGITS.clone().requires_grad_()
    value, n = LabelLoss("bce")(logits[3:], LABELS[3:])
    value.backward()
    assert (value.item(), n) == (0.0, 0)
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "ce"}, "loss.kind: expected bce, partial_bce, asl, got 'ce'"),
        ({"unknown": "drop"}, "loss.unknown: expected ignore, negative, got 'drop'"),
        ({"reading": "softmax"}, "loss.reading: expected sigmoid, contrastive, got 'softmax'"),
        ({"margin": -0.1}, "loss.margin: expected at least 0, got -0.1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        LabelLoss(**settings)


# --- splits and batches ---


def item(name):
    return ImageItem(name, lambda look, view: torch.zeros(3, 2, 2), name)


def split_of(labels, names=("cat", "dog", "bird")):
    return Split(tuple(item(f"{i}") for i in range(len(labels))), tuple(labels), names)


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


def test_the_loss_of_a_split_is_that_of_its_batches():
    loss = LabelLoss("asl", weight=3.0)
    [batch] = Split((item("a"),), ((1, 0),), ("cat", "dog"), label_loss=loss).batches(1, seed=1)
    assert batch.label_loss is loss
    single = Batch(images(torch.zeros(1, 3, 2, 2)), torch.tensor([1]), ("cat", "dog"))
    assert not single.has_several_labels


@pytest.mark.parametrize("other", [split_of([0, 1, 2]), split_of([(1, 0)], ("cat", "dog"))])
def test_other_kinds_of_labels_are_not_joined(other):
    with pytest.raises(ValueError, match="split: expected items with several labels among the same classes"):
        split_of([(1, 0, -1)]).concat(other)
