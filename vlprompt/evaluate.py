"""Scores of a split, and the answers behind them; nothing here is differentiated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vlprompt.method import Method
from vlprompt.metrics import accuracy, calibration_error, class_mean, macro_f1, per_class
from vlprompt.stage import Split, ids


@torch.no_grad()
def answers(method: Method, split: Split, batch: int = 100, micro_batch: int | None = None) -> Iterator[Tensor]:
    """Logits (B, C) of a split in order, in eval mode; texts are prepared once."""
    was = method.training
    method.eval()
    try:
        prepared = method.prepare(split.names, method.fixed(split.names))
        for whole in split.batches(batch):
            yield torch.cat([method(part.inputs, prepared).logits.float().cpu() for part in whole.split(micro_batch)])
    finally:
        method.train(was)


@dataclass(frozen=True)
class Scores:
    """What a split's answers come to, in percent: numbers by name, and the accuracy of each class by its id."""

    numbers: dict[str, float]
    classes: dict[str, float]


def evaluate(
    method: Method,
    split: Split,
    batch: int = 100,
    micro_batch: int | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Scores:
    """accuracy, class_mean (mean of the accuracies per class), macro_f1 and calibration_error.

    watch: called with the images done and their number. ValueError for an empty split.
    """
    if not len(split):
        raise ValueError("there is nothing to evaluate: the split has no images")
    found, done = [], 0
    for part in answers(method, split, batch, micro_batch):
        found.append(part)
        done += len(part)
        if watch:
            watch(done, len(split))
    logits, labels, classes = torch.cat(found), torch.tensor(split.labels), len(split.names)
    predicted = logits.argmax(1)
    numbers = {
        "accuracy": accuracy(predicted, labels),
        "class_mean": class_mean(predicted, labels, classes),
        "macro_f1": macro_f1(predicted, labels, classes),
        "calibration_error": calibration_error(logits.softmax(1), labels),
    }
    each = per_class(predicted, labels, classes).tolist()
    return Scores(numbers, {i: value for i, value in zip(ids(split.names), each, strict=True) if value == value})
