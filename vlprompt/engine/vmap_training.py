"""Several settings of one method trained side by side: what a grid search asks for.

Settings of one seed see the same batches, so a step is one pass of a batch through the stacked parameters of all of
them (torch.func.vmap). Each setting keeps its own optimizer, schedule and clipping, each seed its own random
stream, and a setting ends where `fit` would have brought it by itself, to rounding.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlprompt.core.batch import Batch
from vlprompt.core.method import Method, Terms
from vlprompt.core.stage import Lesson
from vlprompt.engine.epoch_batches import check
from vlprompt.engine.loop import Loop, NotFinite, State
from vlprompt.engine.model_selection import criteria
from vlprompt.engine.train_config import Train, rate
from vlprompt.runtime import distributed
from vlprompt.runtime.seeding import number

PAYS = 8  # settings; fewer are as quick one after another


@dataclass
class Standing:
    """Where several settings stand: a state of each, and the places of those whose numbers were not finite."""

    states: list[State]
    out: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Together:
    """One step that all settings took: its number (from 1) and losses, nan for a setting that is out.

    `side.standing()` is what to save after it.
    """

    step: int
    steps: int
    losses: list[float]
    side: "Side"


class _Terms(nn.Module):
    """The terms of a method as what a Module calls its forward, so that it can be given other parameters."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, fixed: Any) -> Terms:
        return self.method.terms(batch, fixed)[0]


def _stacked(each: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of all settings as one (S, ...); what the settings hold becomes a view of their place in it."""
    found = {}
    for name in each[0]:
        found[name] = torch.stack([mine[name].detach() for mine in each])
        for place, mine in enumerate(each):
            mine[name].data = found[name][place]
    return found


@contextmanager
def _tiny_is_zero() -> Iterator[None]:
    """Numbers below 1e-38 are zero: gradients of a head that is sure of itself are full of them, and they are slow."""
    was = not bool(torch.tensor(1e-40) * 1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was)


class Group:
    """Settings of one seed; `places`: of its settings among all."""

    def __init__(self, loops: dict[int, Loop], seed: int, lesson: Lesson):
        self.places, self.loops, self.seed = [*loops], [*loops.values()], seed
        self.device, self.train = self.loops[0].device, self.loops[0].train
        models = [_Terms(loop.method) for loop in self.loops]
        self.model, self.wanted = models[0], [k for k, p in models[0].named_parameters() if p.requires_grad]
        self.parameters = _stacked([dict(model.named_parameters()) for model in models])
        self.buffers = _stacked([dict(model.named_buffers()) for model in models])
        torch.manual_seed(number(seed, "training", lesson.index))
        self.random = self._random()

    def _random(self) -> dict[str, Tensor]:
        found = {"random/cpu": torch.get_rng_state()}
        return found | ({"random/cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def gradients(self, batch: Batch) -> list[tuple[dict[str, float], list[Tensor]]]:
        """Terms and merged gradient of each setting, as `Loop.gradients` has them of one."""
        fixed, leaves = self.loops[0].known(batch.names), {k: v.detach() for k, v in self.parameters.items()}
        wanted = [leaves[k].requires_grad_() for k in self.wanted]
        sums: dict[str, list[Tensor]] = {}
        values: dict[str, Tensor] = {}
        counts: dict[str, float] = {}
        dtype = torch.bfloat16 if self.train.precision == "bf16" else None
        for part in batch.split(self.train.micro_batch):
            rows: dict[str, float] = {}

            def terms(parameters: Any, buffers: Any, part: Batch = part, rows: dict[str, float] = rows) -> Any:
                found = functional_call(self.model, (parameters, buffers), (part, fixed))
                rows |= {name: float(n) for name, (_, n) in found.items()}
                return {name: mean for name, (mean, _) in found.items()}

            # the faster kernels of attention have no rule for stacked settings
            with torch.autocast(self.device.type, dtype) if dtype else nullcontext(), sdpa_kernel(SDPBackend.MATH):
                means = vmap(terms, randomness="same")(leaves, self.buffers)
            for i, (name, mean) in enumerate(means.items()):
                total = mean * rows[name]
                values[name] = values.get(name, torch.zeros_like(mean)) + total.detach()
                counts[name] = counts.get(name, 0.0) + rows[name]
                if total.requires_grad:
                    keep = i < len(means) - 1
                    with _tiny_is_zero():
                        new = torch.autograd.grad(
                            total.sum(), wanted, retain_graph=keep, allow_unused=True, materialize_grads=True
                        )
                    sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else list(new)
        told = {name: (value / max(counts[name], 1.0)).tolist() for name, value in values.items()}
        grads = {name: [g / max(counts[name], 1.0) for g in found] for name, found in sums.items()}
        merged = [loop.method.merge({name: [g[s] for g in found] for name, found in grads.items()})
                  for s, loop in enumerate(self.loops)]  # fmt: skip
        return [({name: value[s] for name, value in told.items()}, mine) for s, mine in enumerate(merged)]

    def take(self, batch: Batch, rates: Sequence[float], out: set[int]) -> dict[int, float]:
        """One step of each setting, and its loss; one whose numbers are not finite is out and stays as it was."""
        torch.set_rng_state(self.random["random/cpu"])
        if "random/cuda" in self.random:
            torch.cuda.set_rng_state(self.random["random/cuda"], self.device)
        losses = {}
        for place, loop, (terms, grads) in zip(self.places, self.loops, self.gradients(batch), strict=True):
            try:
                if place not in out:
                    loop.apply(terms, grads, rates[place])
            except NotFinite:
                out.add(place)
            losses[place] = math.nan if place in out else sum(terms.values())
        self.random = self._random()
        return losses


class Side:
    """All settings, in groups by seed."""

    def __init__(self, loops: Sequence[Loop], lesson: Lesson, resume: Standing | None):
        self.loops, seeds = loops, dict.fromkeys(loop.seed for loop in loops)
        mine = {seed: {i: loop for i, loop in enumerate(loops) if loop.seed == seed} for seed in seeds}
        self.groups, self.out = [Group(some, seed, lesson) for seed, some in mine.items()], set[int]()
        if resume is not None:
            self.out = set(resume.out)
            for loop, state in zip(loops, resume.states, strict=True):
                loop.load(state)
            for group in self.groups:
                kept = resume.states[group.places[0]].tensors
                group.random = {name: kept[name].cpu() for name in group.random}

    def standing(self) -> Standing:
        """A copy of all that the next step depends on."""
        states = [loop.state() for loop in self.loops]
        for group in self.groups:
            for place in group.places:
                states[place].tensors |= {name: kept.clone() for name, kept in group.random.items()}
        return Standing(states, set(self.out))


def check_side(methods: Sequence[Method], trains: Sequence[Train]) -> None:
    """ValueError for settings that can't be trained side by side."""
    if distributed.size() > 1:
        raise ValueError("settings side by side are trained by one process: search without torchrun")
    if len({type(method) for method in methods}) != 1 or len(methods) != len(trains):
        raise ValueError("settings side by side are of one method, and each needs its own Train")
    if not methods[0].side_by_side:
        raise ValueError(f"{type(methods[0]).__name__} does not train side by side (side_by_side is 0); use fit")
    if any(replace(train, lr=trains[0].lr, weight_decay=trains[0].weight_decay) != trains[0] for train in trains):
        raise ValueError("settings side by side may differ in lr, weight_decay and seed only")
    if trains[0].precision == "fp16":
        raise ValueError("settings side by side have no scaler of the loss each; use train.precision=bf16 or fp32")


def fit_side_by_side(methods: Sequence[Method], lesson: Lesson, trains: Sequence[Train], seeds: Sequence[int],
                     resume: Standing | None = None) -> Iterator[Together]:  # fmt: skip
    """Train methods that have begun a lesson, alike but for lr, weight decay and seed; yields after each step.

    Each ends as `fit(method, lesson, train, seed)` would leave it, to rounding, and those of one seed draw the same
    dropout as it would. A setting whose numbers are not finite is out, and the others go on. ValueError for settings
    that can't be trained so.
    """
    check_side(methods, trains)
    for method in methods:
        method.train()
    train = trains[0]
    if not any(p.requires_grad for p in methods[0].parameters()) or not train.epochs:
        return
    check(lesson, train)
    loops = [Loop(method, lesson, mine, seed) for method, mine, seed in zip(methods, trains, seeds, strict=True)]
    side = Side(loops, lesson, resume)
    steps, epochs, total = train.length(len(lesson.train))
    cursor = loops[0].cursor
    while cursor.step < total:
        epoch, done = cursor.epoch, cursor.place
        how = {"epoch": epoch, "views": train.views, "drop_last": train.drop_last}
        order = [lesson.train.batches(train.batch, seed=number(g.seed, lesson.index), **how) for g in side.groups]
        for place, batches in enumerate(zip(*order, strict=True)):
            step = epoch * steps + place
            if place < done or step >= total:
                continue
            rates, losses = [rate(loop.train, epoch, step, epochs, total) for loop in loops], dict[int, float]()
            for group, batch in zip(side.groups, batches, strict=True):
                losses |= group.take(replace(batch, step=step, progress=step / total), rates, side.out)
            end = place + 1 == steps or step + 1 == total
            for loop in loops:
                loop.cursor.epoch, loop.cursor.place, loop.cursor.step = epoch + end, 0 if end else place + 1, step + 1
                if end:
                    loop.method.end_epoch(epoch, epochs)
                if end and train.select != "last":
                    loop.judge(criteria(loop.method, lesson, [train.select], train.micro_batch), last=step + 1 == total)
            cursor = loops[0].cursor
            yield Together(step + 1, total, [losses[i] for i in range(len(loops))], side)


def at_once(method: Method, train: Train) -> int:
    """How many settings to train side by side: as many as the method's promise covers at this batch; 1 below PAYS."""
    many = method.side_by_side // train.batch if train.precision != "fp16" else 1
    return many if many >= PAYS else 1
