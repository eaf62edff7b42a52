"""Checks of what training does: to the backbone, to the parameters, and again with the same seed."""

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.method import Method
from vlprompt.core.towers import Backbone, Clip
from vlprompt.testing.case import MethodCase
from vlprompt.testing.failures import require

MAX_NAMES = 4  # in a message


def check_backbone_unchanged(case: MethodCase) -> None:
    """Training leaves every weight of the frozen backbone as it was, without a gradient."""
    frozen = collect_weights(case.backbone)
    before = {name: weight.clone() for name, weight in frozen.items()}
    case.train()
    after = collect_weights(case.backbone)
    changed = [name for name in before if not is_same(before[name], after.get(name))]
    require(
        not changed,
        f"backbone: expected frozen weights, got {len(changed)} that changed ({join_names(changed)}). Give a Prompt to "
        "the tower instead of writing into it, or train tower.trainable_copy().",
    )
    with_gradient = [name for name, weight in frozen.items() if weight.grad is not None or weight.requires_grad]
    require(
        not with_gradient,
        f"backbone: expected weights without gradients, got one for {join_names(with_gradient)}. "
        "Leave requires_grad of the backbone's weights as it is.",
    )


def check_gradients(case: MethodCase) -> None:
    """Every parameter gets a gradient in each step, and one that is not zero in some step."""
    method = case.begin()
    exempt = (*method.parameters_without_grad, *case.unused_parameters)
    live = {name: p for name, p in method.named_parameters() if p.requires_grad and name not in exempt}
    with_gradient = set[str]()
    for batch in _iter_gradient_batches(case, method):  # a zero start (LoRA's) has its gradient from the second step on
        method.zero_grad()
        terms, _ = method.loss_terms(batch, method.precompute(batch.names))
        total = sum(value for value, _ in terms.values())
        if live:
            require(
                isinstance(total, Tensor) and total.requires_grad,
                f"loss: expected one that depends on the parameters ({join_names(live)}), got a constant. Use them in "
                "prepare or forward, without torch.no_grad() or detach().",
            )
            torch.autograd.backward([total])  # pyright: ignore[reportArgumentType]
        missing = [name for name, p in live.items() if p.grad is None]
        require(not missing or case.has_texts, _describe_unused(missing))
        with_gradient |= {name for name, p in live.items() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
        for p in live.values():
            p.data -= 0.1 * p.grad if p.grad is not None else 0
    require(with_gradient == set(live), _describe_unused([name for name in live if name not in with_gradient]))


def _describe_unused(names: list[str]) -> str:
    return (
        f"parameters: expected a gradient for each, got none for {join_names(names)}. Use them in the loss, register "
        "them as buffers, or name those that one step may leave out in parameters_without_grad."
    )


def _iter_gradient_batches(case: MethodCase, method: Method) -> Iterator[Batch]:
    """Yield the batches of an epoch, with unlabelled images for a method that learns from them."""
    train = method.training_lesson(case.lesson).train
    if case.has_texts:
        yield from train.batches(12)
        return
    unlabelled = None
    if method.needs_unlabelled and case.lesson.unlabelled is not None:
        unlabelled = next(case.lesson.unlabelled.batches(9))
    for batch in train.batches(10):
        yield replace(batch, unlabelled=unlabelled, progress=0.5)
    if not len(train) and unlabelled is not None:
        yield replace(unlabelled, inputs=unlabelled.inputs.slice(0, 0), names=train.names, unlabelled=unlabelled)


def check_learns(case: MethodCase) -> None:
    """The loss falls when the method is trained."""
    _, losses = case.train(epochs=8, batch_size=20)  # of all images, so that losses can be compared
    if not losses:
        raise SkipTest("nothing is trained")
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    require(
        last < first,
        f"loss: expected it to fall in {len(losses)} steps, got {first:.4f} at first and {last:.4f} at last (means of "
        "3). Check the sign of the loss and the scale of the initial values.",
    )


def check_bf16(case: MethodCase) -> None:
    """Training in bfloat16 has losses near those of float32."""
    try:
        full, half = case.training.losses, case.train(precision="bf16")[1]
    except RuntimeError as error:
        if "primitive" not in str(error):
            raise
        raise SkipTest(f"this machine has no bfloat16 kernel for a part of it: {error}") from error
    if not full:
        raise SkipTest("nothing is trained")
    far = [
        f"{a:.4f} and {b:.4f}"
        for a, b in zip(full, half, strict=True)
        if not math.isclose(a, b, rel_tol=0.05, abs_tol=0.02)
    ]
    require(
        not far,
        f"train.precision=bf16: expected losses within 5 % of float32's, got {join_names(far)}. Compute exponentials, "
        "norms and small differences in float32: x.float().",
    )


def check_micro_batches(case: MethodCase) -> None:
    """Micro-batches give the gradient of the whole batch, or are refused where a step needs all of it."""
    if case.begin().needs_whole_batch:
        try:
            case.train(micro_batch_size=3)
        except ValueError as error:
            require("normalises over the whole batch" in str(error), f"micro-batches: got another error: {error}")
            return
        require(False, "micro-batches: expected a refusal, got a training. Leave needs_whole_batch to the training.")
    parts = case.begin().modules()
    rates = [part.p if isinstance(part, nn.Dropout) else getattr(part, "dropout", 0) for part in parts]
    if any(isinstance(rate, float) and rate > 0 for rate in rates):
        raise SkipTest("draws dropout for each micro-batch; method.dropout=0 compares them")
    steps = _text_steps(case)
    plain = case.train(**steps)[0] if steps else case.trained
    methods = [plain, case.train(micro_batch_size=3, **steps)[0]]
    rtol, atol = (1e-5, 1e-4) if steps else (1e-4, 1e-5)  # large steps make large parameters beside small ones
    _require_close_parameters(methods, "train.micro_batch_size=3", "sums or counts", rtol, atol)


def check_activation_checkpointing(case: MethodCase) -> None:
    """Recomputing activations in the backward pass gives the same gradient."""
    if not case.has_texts:
        raise SkipTest("checked on language models")
    methods = [case.train(activation_checkpointing=is_on, **_text_steps(case))[0] for is_on in (False, True)]
    _require_close_parameters(methods, "train.activation_checkpointing=true", "random numbers", 1e-5, 1e-4)
    is_on = getattr(case.backbone, "activation_checkpointing", False)
    require(not is_on, "activation checkpointing: expected it off after the training, got it on. Leave it to fit().")


def _text_steps(case: MethodCase) -> dict[str, Any]:
    """Return the training of texts by which gradients are compared: three large steps."""
    return {"iterations": 3, "batch_size": 8, "lr": 0.1} if case.has_texts else {}


def _require_close_parameters(methods: list[Method], setting: str, cause: str, rtol: float, atol: float) -> None:
    """Raise CheckFailure where two trainings that should be the same gave other parameters."""
    one, other = (dict(method.named_parameters()) for method in methods)
    if not one:
        raise SkipTest("nothing is trained")
    far = [name for name in one if not torch.allclose(one[name], other[name], rtol=rtol, atol=atol)]
    require(
        not far,
        f"{setting}: expected the parameters of a training without it, got others in {join_names(far)}. Return each "
        f"loss term as a mean with the rows it is over, and draw no {cause} that depend on the batch's size.",
    )


def check_initial_values(case: MethodCase) -> None:
    """Initial values come from the generator of begin_lesson alone, never from a global random state."""
    states: list[dict[str, Tensor]] = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            random.seed(seed)
            states.append({name: tensor.clone() for name, tensor in case.begin().state_dict().items()})
    differing = [name for name in states[0] if not is_same(states[0][name], states[1].get(name))]
    require(
        not differing,
        f"begin_lesson: expected the same initial values from the same generator, got others in "
        f"{join_names(differing)}. Write torch.randn(..., generator=generator), also for nn.Linear's weights.",
    )


def check_reproducible(case: MethodCase) -> None:
    """A seed gives the same training bit for bit, and another seed another one."""
    first, (again, losses), other_losses = case.training, case.train(), case.train(1)[1]
    state = again.state_dict()
    differing = [name for name in first.state if not is_same(first.state[name], state.get(name))]
    require(
        first.losses == losses and not differing,
        f"seed: expected two trainings with the seed 0 to be the same, got other {join_names(differing) or 'losses'}. "
        "Draw random numbers from the generator of begin_lesson, and keep nothing outside of the object.",
    )
    require(
        not losses or losses != other_losses,
        "seed: expected another training with another seed, got the same losses. Draw initial values from the "
        "generator of begin_lesson instead of a seed of your own.",
    )


def collect_weights(backbone: Backbone) -> dict[str, Tensor]:
    """Return all tensors that a backbone holds, by the path of their attributes."""
    towers = {"image": backbone.image, "text": backbone.text} if isinstance(backbone, Clip) else {"tower": backbone}
    weights: dict[str, Tensor] = {}
    for name, tower in towers.items():
        weights |= _collect_tensors(tower, name, set())
    return weights


def _collect_tensors(value: Any, path: str, seen: set[int]) -> dict[str, Tensor]:
    """Return the tensors of an object, of its modules, and of what it holds of this package."""
    if isinstance(value, Tensor):
        return {path: value}
    if id(value) in seen:
        return {}
    seen.add(id(value))
    tensors: dict[str, Tensor] = {}
    if isinstance(value, nn.Module):
        tensors |= {f"{path}.{name}": tensor for name, tensor in [*value.named_parameters(), *value.named_buffers()]}
        return tensors
    if isinstance(value, list | tuple):
        parts: dict[str, Any] = {str(i): part for i, part in enumerate(value)}
    elif isinstance(value, dict):
        parts = {str(key): part for key, part in value.items()}
    elif type(value).__module__.startswith("vlprompt.") and "cache" not in type(value).__module__:
        parts = dict(getattr(value, "__dict__", {}))
    else:
        return {}
    for name, part in parts.items():
        tensors |= _collect_tensors(part, f"{path}.{name}", seen)
    return tensors


def is_same(tensor: Tensor, other: Tensor | None) -> bool:
    """Return whether two tensors are equal bit for bit."""
    return other is not None and torch.equal(tensor, other)


def join_names(names: Iterable[str]) -> str:
    """Join the first few names for a message."""
    names = list(names)
    return ", ".join(names[:MAX_NAMES]) + " ..." * (len(names) > MAX_NAMES)
