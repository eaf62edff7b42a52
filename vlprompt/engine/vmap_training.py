"""Several settings of one method trained side by side: what a grid search asks for.

Settings of one seed see the same batches, so a step is one pass of a batch through the stacked parameters of all of
them (torch.func.vmap). Each setting keeps its own optimizer, schedule and clipping, each seed its own random
stream, and a setting ends where `fit` would have brought it by itself, to rounding.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlprompt.core.batch import Batch
from vlprompt.core.head import Fixed
from vlprompt.core.method import LossTerms, Method
from vlprompt.core.stage import Lesson
from vlprompt.engine.epoch_batches import validate_lesson
from vlprompt.engine.loop import Loop, State
from vlprompt.engine.model_selection import compute_selection_scores
from vlprompt.engine.train_config import TrainConfig, compute_learning_rate
from vlprompt.runtime import distributed
from vlprompt.runtime.errors import NonFiniteError
from vlprompt.runtime.seeding import capture_random_states, derive_seed, restore_random_states

Tensors: TypeAlias = dict[str, Tensor]
MIN_VMAPPED_RUNS = 8  # settings; fewer are as quick one after another


@dataclass
class VmapState:
    """Where several settings stand: a state of each, and the places of those whose numbers were not finite."""

    states: list[State]
    failed: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class VmapStep:
    """One step that all settings took: its number (from 1) and losses, nan for a setting that is out.

    `trainer.state()` is what to save after it.
    """

    step: int
    total_steps: int
    losses: list[float]
    trainer: "VmapTrainer"


class _LossTerms(nn.Module):
    """The terms of a method as what a Module calls its forward, so that it can be given other parameters."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, fixed: Fixed) -> LossTerms:
        return self.method.loss_terms(batch, fixed)[0]


def _stack_tensors(tensors_by_run: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of all settings as one (S, ...); what the settings hold becomes a view of their place in it."""
    found = {}
    for name in tensors_by_run[0]:
        found[name] = torch.stack([mine[name].detach() for mine in tensors_by_run])
        for place, mine in enumerate(tensors_by_run):
            mine[name].data = found[name][place]
    return found


@contextmanager
def _flush_denormals() -> Iterator[None]:
    """Numbers below 1e-38 are zero: gradients of a head that is sure of itself are full of them, and they are slow."""
    was = not bool(torch.tensor(1e-40) * 1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was)


class SeedGroup:
    """Settings of one seed; `indices`: of its settings among all."""

    def __init__(self, loops: dict[int, Loop], seed: int, lesson: Lesson):
        self.indices, self.loops, self.seed = [*loops], [*loops.values()], seed
        self.device, self.config = self.loops[0].device, self.loops[0].config
        models = [_LossTerms(loop.method) for loop in self.loops]
        self.model, self.trainable_names = models[0], [k for k, p in models[0].named_parameters() if p.requires_grad]
        self.parameters = _stack_tensors([dict(model.named_parameters()) for model in models])
        self.buffers = _stack_tensors([dict(model.named_buffers()) for model in models])
        torch.manual_seed(derive_seed(seed, "training", lesson.index))
        self.random_state = capture_random_states(self.device)

    def compute_gradients(self, batch: Batch) -> list[tuple[dict[str, float], list[Tensor]]]:
        """Terms and merged gradient of each setting, as `Loop.compute_gradients` has them of one."""
        fixed, leaves = self.loops[0].precompute(batch.names), {k: v.detach() for k, v in self.parameters.items()}
        wanted = [leaves[k].requires_grad_() for k in self.trainable_names]
        sums: dict[str, list[Tensor]] = {}
        values: dict[str, Tensor] = {}
        counts: dict[str, float] = {}
        dtype = torch.bfloat16 if self.config.precision == "bf16" else None
        for part in batch.micro_batches(self.config.micro_batch_size):
            rows: dict[str, float] = {}

            def terms(
                parameters: Tensors, buffers: Tensors, part: Batch = part, rows: dict[str, float] = rows
            ) -> Tensors:
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
                    with _flush_denormals():
                        new = torch.autograd.grad(
                            total.sum(), wanted, retain_graph=keep, allow_unused=True, materialize_grads=True
                        )
                    sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else list(new)
        if counts:
            self.loops[0].require_loss_use()
        told = {name: (value / max(counts[name], 1.0)).tolist() for name, value in values.items()}
        grads = {name: [g / max(counts[name], 1.0) for g in found] for name, found in sums.items()}
        merged = [
            loop.method.merge_gradients({name: [g[s] for g in found] for name, found in grads.items()})
            for s, loop in enumerate(self.loops)
        ]
        return [({name: value[s] for name, value in told.items()}, mine) for s, mine in enumerate(merged)]

    def take_step(self, batch: Batch, learning_rates: Sequence[float], failed: set[int]) -> dict[int, float]:
        """One step of each setting, and its loss; one whose numbers are not finite is out and stays as it was."""
        restore_random_states(self.random_state, self.device)
        losses = {}
        for place, loop, (terms, grads) in zip(self.indices, self.loops, self.compute_gradients(batch), strict=True):
            try:
                if place not in failed:
                    loop.apply_gradients(terms, grads, learning_rates[place])
            except NonFiniteError:
                failed.add(place)
            losses[place] = math.nan if place in failed else sum(terms.values())
        self.random_state = capture_random_states(self.device)
        return losses


class VmapTrainer:
    """All settings, in groups by seed."""

    def __init__(self, loops: Sequence[Loop], lesson: Lesson, resume: VmapState | None):
        self.loops, seeds = loops, dict.fromkeys(loop.seed for loop in loops)
        mine = {seed: {i: loop for i, loop in enumerate(loops) if loop.seed == seed} for seed in seeds}
        self.groups, self.failed = [SeedGroup(some, seed, lesson) for seed, some in mine.items()], set[int]()
        if resume is not None:
            self.failed = set(resume.failed)
            for loop, state in zip(loops, resume.states, strict=True):
                loop.load(state)
            for group in self.groups:
                kept = resume.states[group.indices[0]].tensors
                group.random_state = {name: kept[name].cpu() for name in group.random_state}

    def state(self) -> VmapState:
        """A copy of all that the next step depends on."""
        states = [loop.state() for loop in self.loops]
        for group in self.groups:
            for place in group.indices:
                states[place].tensors |= {name: kept.clone() for name, kept in group.random_state.items()}
        return VmapState(states, set(self.failed))


def validate_vmap(methods: Sequence[Method], configs: Sequence[TrainConfig]) -> None:
    """ValueError for configs that can't be trained together by `fit_vmapped`."""
    if distributed.get_world_size() > 1:
        raise ValueError(
            f"fit_vmapped: expected one process, got {distributed.get_world_size()}. Search without torchrun."
        )
    if len({type(method) for method in methods}) != 1 or len(methods) != len(configs):
        raise ValueError(
            f"fit_vmapped: expected copies of one method with a TrainConfig each, got {len(methods)} copies of "
            f"{', '.join(sorted({type(method).__name__ for method in methods}))} and {len(configs)} configs. "
            "Use fit for other methods."
        )
    if not methods[0].max_vmap_images:
        raise ValueError(
            f"fit_vmapped: expected a method with max_vmap_images above 0, got {type(methods[0]).__name__}. Use fit."
        )
    if any(replace(train, lr=configs[0].lr, weight_decay=configs[0].weight_decay) != configs[0] for train in configs):
        raise ValueError(
            "fit_vmapped: expected configs that differ in lr, weight_decay and seed only, got other differences. "
            "Use fit for each."
        )
    if configs[0].precision == "fp16":
        raise ValueError(
            "train.precision: expected bf16 or fp32 for vmapped runs, which share one loss scale, got fp16. "
            "Set train.precision=bf16 or fp32."
        )


def fit_vmapped(
    methods: Sequence[Method],
    lesson: Lesson,
    configs: Sequence[TrainConfig],
    seeds: Sequence[int],
    resume: VmapState | None = None,
) -> Iterator[VmapStep]:
    """Train several copies of a method at once that differ in lr, weight decay and seed only; yield after each step.

    Each ends as `fit(method, lesson, config, seed)` would leave it, up to rounding, and copies of one seed draw the
    same dropout. A copy whose numbers are not finite drops out, and the others go on.

    Raises:
        ValueError: for settings that can't be trained this way.
    """
    configs = [config.for_lesson(lesson.index) for config in configs]
    validate_vmap(methods, configs)
    for method in methods:
        method.train()
    config = configs[0]
    if not any(p.requires_grad for p in methods[0].parameters()) or not config.epochs:
        return
    validate_lesson(lesson, config)
    loops = [Loop(method, lesson, own, seed) for method, own, seed in zip(methods, configs, seeds, strict=True)]
    trainer, label_loss = VmapTrainer(loops, lesson, resume), loops[0].label_loss
    steps, epochs, total_steps = config.count_steps(len(lesson.train))
    cursor = loops[0].cursor
    while cursor.step < total_steps:
        epoch, n_done = cursor.epoch, cursor.batch_index
        options = {"epoch": epoch, "n_augmentations": config.augmentations, "drop_last": config.drop_last}
        seeds_of_groups = [derive_seed(group.seed, lesson.index) for group in trainer.groups]
        batches_of_groups = [lesson.train.batches(config.batch_size, seed=seed, **options) for seed in seeds_of_groups]
        for index, batches in enumerate(zip(*batches_of_groups, strict=True)):
            step = epoch * steps + index
            if index < n_done or step >= total_steps:
                continue
            rates = [compute_learning_rate(loop.config, epoch, step, epochs, total_steps) for loop in loops]
            losses = dict[int, float]()
            for group, batch in zip(trainer.groups, batches, strict=True):
                batch = replace(batch, step=step, progress=step / total_steps, label_loss=label_loss)
                losses |= group.take_step(batch, rates, trainer.failed)
            ends_epoch = index + 1 == steps or step + 1 == total_steps
            for loop in loops:
                _advance(loop, index, step, epochs, ends_epoch, is_last=step + 1 == total_steps)
            cursor = loops[0].cursor
            yield VmapStep(step + 1, total_steps, [losses[i] for i in range(len(loops))], trainer)


def _advance(loop: Loop, index: int, step: int, epochs: int, ends_epoch: bool, is_last: bool) -> None:
    """Move the cursor of one copy past a step, and end its epoch."""
    config, epoch = loop.config, loop.cursor.epoch
    loop.cursor.epoch, loop.cursor.step = epoch + ends_epoch, step + 1
    loop.cursor.batch_index = 0 if ends_epoch else index + 1
    if not ends_epoch:
        return
    loop.method.end_epoch(epoch, epochs)
    if config.model_selection != "last":
        rules = [config.model_selection]
        scores = compute_selection_scores(loop.method, loop.lesson, rules, config.micro_batch_size)
        loop.update_best(scores, is_last)


def count_vmapped_runs(method: Method, config: TrainConfig) -> int:
    """Count the settings to train at once: as many as the method allows at this batch size; 1 below
    MIN_VMAPPED_RUNS.
    """
    n_runs = method.max_vmap_images // config.batch_size if config.precision != "fp16" else 1
    return n_runs if n_runs >= MIN_VMAPPED_RUNS else 1
