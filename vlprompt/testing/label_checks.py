"""A check of what a method learns from images that may have several labels."""

import math
from dataclasses import replace
from unittest import SkipTest

import torch
from torch import Tensor

from vlprompt.core.batch import Batch, Split
from vlprompt.core.method import Method
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.run_requirements import require_label_kind
from vlprompt.runtime.seeding import make_generator
from vlprompt.testing.case import CHECK_TRAINING, MethodCase
from vlprompt.testing.failures import require


def check_several_labels(case: MethodCase) -> None:
    """Where images may have several labels, its loss depends on each of them, or it refuses such images."""
    method, lesson = case.build(), replace(case.lesson, train=_add_labels(case.lesson.train), val=None, unlabelled=None)
    try:
        require_label_kind(method, lesson)
    except ValueError as refusal:
        raise SkipTest(str(refusal)) from refusal
    method.begin_lesson(lesson, make_generator(0))
    if any(p.requires_grad for p in method.parameters()):
        config = TrainConfig(epochs=1, **CHECK_TRAINING)
        losses = [step.loss for step in fit(method, lesson, config, seed=0)]
        require(all(map(math.isfinite, losses)), f"labels (B, C): expected finite losses, got {losses}.")
        _require_all_labels(method.train(), next(method.training_lesson(lesson).train.batches(4)), config)
    method.end_lesson(lesson)
    logits = case.answer(method, case.draw_inputs(3, "several labels"))
    expected = (3, len(lesson.train.names))
    require(
        logits.shape == expected and bool(logits.isfinite().all()),
        f"labels (B, C): expected finite logits {expected}, got {tuple(logits.shape)}. Return logits (B, C).",
    )


def _add_labels(split: Split) -> Split:
    """Return the split with three labels an item: its own and the next are present, the one after is unknown."""
    n = len(split.names)
    states = [{label: 1, (label + 1) % n: 1, (label + 2) % n: -1} for label in split.labels]
    return replace(split, labels=tuple(tuple(state.get(k, 0) for k in range(n)) for state in states))


def _require_all_labels(method: Method, batch: Batch, config: TrainConfig) -> None:
    """Raise CheckFailure where the loss of an item stays as it is when one of its known labels is another."""
    label_loss = config.build_label_loss(replace(Split((), (), batch.names), labels=tuple(map(tuple, batch.labels))))

    def compute(labels: Tensor) -> float:
        torch.manual_seed(0)  # dropout drops the same each time
        terms, _ = method.loss_terms(replace(batch, labels=labels, label_loss=label_loss), fixed)
        return sum(float(value.detach()) * n for value, n in terms.values())

    fixed = method.precompute(batch.names)
    before = compute(batch.labels)
    for item, label in ((batch.labels >= 0).nonzero()[::7]).tolist():
        labels = batch.labels.clone()
        labels[item, label] = 1 - labels[item, label]
        require(
            not math.isclose(compute(labels), before, rel_tol=1e-9),
            f"loss: expected one that depends on all labels (B, C), got the same with another label {label} of an "
            "image. Use batch.label_loss(logits, batch.labels), or set needs_single_labels = True.",
        )
