"""A check of what a method learns from images that may have several labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple
from unittest import SkipTest

import torch
from torch import Tensor

from vlprompt.core.batch import UNKNOWN, Batch, Split
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import State, fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.run_requirements import require_label_kind
from vlprompt.runtime.seeding import make_generator
from vlprompt.testing.case import CHECK_TRAINING, MethodCase
from vlprompt.testing.failures import require
from vlprompt.testing.learning_checks import collect_weights, is_same, join_names

OTHER_MARKS = (UNKNOWN - 1, 2)  # of unknown labels, which the loss of the check reads as UNKNOWN


class StoppedStep(NamedTuple):
    """The loss of a step, and the state that a training goes on from after it."""

    loss: float
    state: State


def check_several_labels(case: MethodCase) -> None:
    """Where images may have several labels, it learns from each that is known and from no other, or it refuses them."""
    method, lesson = case.build(), build_label_lesson(case.lesson)
    try:
        require_label_kind(method, lesson)
    except ValueError as refusal:
        raise SkipTest(str(refusal)) from refusal
    config = TrainConfig(epochs=1, **CHECK_TRAINING)
    frozen = collect_weights(case.backbone)
    before = {name: weight.clone() for name, weight in frozen.items()}
    steps = _train(method, lesson, config)
    if steps:
        losses = [step.loss for step in steps]
        require(all(map(math.isfinite, losses)), f"labels (B, C): expected finite losses, got {losses}.")
        _require_frozen(before, collect_weights(case.backbone))
        _require_resume(case, lesson, config, steps, method)
        _require_known_labels(method.train(), next(method.training_lesson(lesson).train.batches(4)), config)
    method.end_lesson(lesson)
    logits = case.answer(method, case.draw_inputs(3, "several labels"))
    expected = (3, len(lesson.train.names))
    require(
        logits.shape == expected and bool(logits.isfinite().all()),
        f"labels (B, C): expected finite logits {expected}, got {tuple(logits.shape)}. Return logits (B, C).",
    )


def build_label_lesson(lesson: Lesson) -> Lesson:
    """Return the lesson with three labels an image: its own and the next are present, the one after is unknown."""
    n = len(lesson.train.names)
    states = [{label: 1, (label + 1) % n: 1, (label + 2) % n: UNKNOWN} for label in lesson.train.labels]
    labels = tuple(tuple(state.get(k, 0) for k in range(n)) for state in states)
    return replace(lesson, train=replace(lesson.train, labels=labels), val=None, unlabelled=None)


def _train(method: Method, lesson: Lesson, config: TrainConfig, resume: State | None = None) -> list[StoppedStep]:
    """Train a method from the begin of a lesson, or on from a state; [] where nothing is trained."""
    method.begin_lesson(lesson, make_generator(0))
    steps = fit(method, lesson, config, seed=0, resume=resume)
    return [StoppedStep(step.loss, step.loop.state()) for step in steps]


def _require_frozen(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    changed = [name for name in before if not is_same(before[name], after.get(name))]
    touched = [name for name, weight in after.items() if weight.grad is not None]
    require(
        not changed and not touched,
        f"labels (B, C): expected the frozen backbone as it was, without gradients, got others for "
        f"{join_names(changed or touched)}. Give a Prompt to the tower instead of writing into it.",
    )


def _require_resume(
    case: MethodCase, lesson: Lesson, config: TrainConfig, steps: Sequence[StoppedStep], trained: Method
) -> None:
    """Raise CheckFailure where a training that goes on after its first step ends in another state."""
    resumed = case.build()
    rest = _train(resumed, lesson, config, steps[0].state)
    require(
        [step.loss for step in rest] == [step.loss for step in steps[1:]],
        "labels (B, C): expected the losses of the training when it goes on after a step, got others. Register what "
        "later steps depend on by register_buffer.",
    )
    expected, state = trained.state_dict(), resumed.state_dict()
    others = [name for name, tensor in expected.items() if not is_same(tensor, state.get(name))]
    require(
        not others,
        f"labels (B, C): expected the state of the training when it goes on after a step, got another in "
        f"{join_names(others)}. Register what later steps depend on by register_buffer.",
    )


def _require_known_labels(method: Method, batch: Batch, config: TrainConfig) -> None:
    """Raise CheckFailure where the loss stays as it is when a known label changes, or changes with an unknown one."""
    label_loss = config.build_label_loss(replace(Split((), (), batch.names), labels=tuple(map(tuple, batch.labels))))

    def read(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        is_known = (labels == 0) | (labels == 1)
        return label_loss(logits, labels.where(is_known, torch.tensor(UNKNOWN)), reduction=reduction)

    def compute(labels: Tensor) -> float:
        torch.manual_seed(0)  # dropout drops the same each time
        terms, _ = method.loss_terms(replace(batch, labels=labels, label_loss=read), fixed)
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
    marked = [batch.labels.where(batch.labels != UNKNOWN, torch.tensor(mark)) for mark in OTHER_MARKS]
    require(
        all(compute(labels) == before for labels in marked),
        "loss: expected one that does not depend on unknown labels, got another for another mark of them. Read labels "
        "by batch.label_loss(logits, batch.labels) alone, or set needs_single_labels = True.",
    )
