"""fit: one lesson, one loop, a generator; the caller's for loop is the callback."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names, ids
from vlprompt.core.introspection import computed
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.engine import optimizers
from vlprompt.engine.data_parallel import Shares
from vlprompt.engine.epoch_batches import Order, check
from vlprompt.engine.model_selection import criteria
from vlprompt.engine.train_config import Train, rate
from vlprompt.runtime import collectives
from vlprompt.runtime.seeding import number


@dataclass
class State:
    """Everything that a resume needs: tensors (parameters, optimizer, random states) and where the loop stands."""

    epoch: int = 0
    place: int = 0  # batches of this epoch that are done
    step: int = 0
    best: float | None = None  # score of the state that is kept, where one is
    tensors: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One step that was taken: its number (from 1), terms of the loss, learning rate.

    `loop.state()` is what to save after it.
    """

    epoch: int
    step: int
    steps: int
    terms: dict[str, float]
    lr: float
    loop: "Loop"

    @property
    def loss(self) -> float:
        return sum(self.terms.values())


class NotFinite(ArithmeticError):
    """A loss or a gradient that is not a number; the parameters are those of before the step."""


class Loop:
    """The state of one training: method, optimizer, scaler and cursor."""

    def __init__(self, method: Method, lesson: Lesson, train: Train, seed: int):
        self.method, self.lesson, self.train, self.seed = method, lesson, train, seed
        if train.micro_batch is not None and any(getattr(part, "whole_batch", False) for part in method.modules()):
            raise ValueError(
                f"train.micro_batch={train.micro_batch} would change what {type(method).__name__} learns: it "
                "normalises over the whole batch; leave micro_batch out and take a smaller train.batch"
            )
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer = optimizers.optimizer(method.groups(), train, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=train.precision == "fp16")
        self.cursor = State()
        self.fixed: dict[object, Any] = {}
        self.shares = Shares(method, self.parameters, number(seed, lesson.index))
        self.begun = 0  # the step at which this epoch began
        self.best: dict[str, Tensor] = {}

    def state(self) -> State:
        """A copy of all that the next step depends on."""
        tensors = {f"method/{k}": v.detach().clone() for k, v in self.method.state_dict().items()}
        tensors |= {f"optimizer/{k}": v for k, v in optimizers.saved(self.optimizer).items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        tensors["random/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        return replace(self.cursor, tensors=tensors, scaler=self.scaler.state_dict())

    def load(self, state: State) -> None:
        """Go on from a state of the same method and lesson."""
        self.method.load_state_dict({k[7:]: v for k, v in state.tensors.items() if k.startswith("method/")})
        optimizers.load(self.optimizer, {k[10:]: v for k, v in state.tensors.items() if k.startswith("optimizer/")})
        torch.set_rng_state(state.tensors["random/cpu"].cpu())
        if "random/cuda" in state.tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(state.tensors["random/cuda"].cpu(), self.device)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        self.best = {k[5:]: v for k, v in state.tensors.items() if k.startswith("best/")}
        self.cursor = State(state.epoch, state.place, state.step, state.best)

    def judge(self, scores: Mapping[str, float], last: bool) -> None:
        """Keep this state if its score is the best so far; after the last epoch go back to the best."""
        if (score := scores.get(self.train.select)) is None:
            raise ValueError(
                f"train.select={self.train.select} can't be told here: agreement needs a method with pseudo-labels or "
                "one on a CLIP, whose zero-shot answers they are, the oracle a target; use select=last, or val"
            )
        if self.cursor.best is None or score > self.cursor.best:
            self.cursor.best = score
            self.best = {k: v.detach().clone() for k, v in self.method.state_dict().items()}
        if last:
            self.method.load_state_dict(self.best)

    def known(self, names: Names) -> Any:
        """What the method holds fixed for these names, made once."""
        key = (names, ids(names))  # two classes may share a name
        if key not in self.fixed:
            with torch.no_grad():
                self.fixed[key] = self.method.fixed(names)
        return self.fixed[key]

    def gradients(self, batch: Batch) -> tuple[dict[str, float], list[Tensor]]:
        """Terms, and the merged gradient: sums over micro-batches, divided by the rows that each term is over."""
        fixed = self.known(batch.names)
        sums: dict[str, list[Tensor]] = {}
        counts: dict[str, float] = {}
        values: dict[str, float] = {}
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.train.precision)
        for part in self.shares.parts(batch, self.train.micro_batch):
            half = torch.autocast(self.device.type, dtype) if dtype else nullcontext()
            with computed(self.method, self.train.how), half:
                terms, _ = self.method.terms(part, fixed)
            for i, (name, (mean, rows)) in enumerate(terms.items()):
                values[name] = values.get(name, 0.0) + float(mean.detach()) * float(rows)
                counts[name] = counts.get(name, 0.0) + float(rows)
                if not mean.requires_grad:
                    continue
                keep = i < len(terms) - 1
                total = self.scaler.scale(mean * rows)
                new = torch.autograd.grad(
                    total, self.parameters, retain_graph=keep, allow_unused=True, materialize_grads=True
                )
                sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else list(new)
        values, counts, sums = self.shares.joined((values, counts, sums))
        means = {name: value / max(counts[name], 1.0) for name, value in values.items()}
        return means, self.method.merge(
            {name: [g / max(counts[name], 1.0) for g in grads] for name, grads in sums.items()}
        )

    def take(self, batch: Batch, lr: float) -> dict[str, float]:
        """One step of the optimizer; NotFinite, and nothing changed, when a number is not finite."""
        terms, grads = self.gradients(batch)
        self.apply(terms, grads, lr)
        return terms

    def apply(self, terms: dict[str, float], grads: list[Tensor], lr: float) -> None:
        """The step itself, by gradients in the order of `parameters`."""
        bad = next((name for name, value in terms.items() if not math.isfinite(value)), None)
        if bad is None and not self.scaler.is_enabled() and not all(map(finite, grads)):
            bad = "gradient"
        if bad is not None:
            raise NotFinite(
                f"the {bad} is not finite at step {self.cursor.step + 1} (epoch {self.cursor.epoch}, "
                f"learning rate {lr:.3g}, terms {terms}); the parameters of the step before are kept. "
                "Lower train.lr, set train.clip=1, or train.precision=fp32"
            )
        for p, g in zip(self.parameters, grads, strict=True):
            p.grad = g
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        if self.train.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.train.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def finite(x: Tensor) -> bool:
    """Whether all of its numbers are; their sum says so in one pass, but where it overflows."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


Judge = Callable[[Loop], Mapping[str, float]]  # after an epoch: a score for each rule of `select`, higher is better


def fit(method: Method, lesson: Lesson, train: Train, seed: int = 1, resume: State | None = None,
        judge: Judge | None = None) -> Iterator[Step]:  # fmt: skip
    """Train a method that has begun a lesson; yields after each step. A method without parameters has nothing to fit.

    The order of the images and their views are pure functions of (seed, epoch); with `resume` the loop goes on exactly
    where the state was taken. judge: is asked after each epoch, and may know rules that a lesson can't (the oracle).
    ValueError for a lesson without images (without labels, for a method that needs them; or without those by which
    `select` chooses), NotFinite for a loss that is not a number.
    """
    method.train()
    if lesson.unlabelled and not len(lesson.train) and not method.adapts and train.epochs and method.state_dict():
        raise ValueError(
            f"{type(method).__name__} learns from labels alone, and this lesson has only unlabelled images: name a "
            "source by --source, or take a method that learns from them, such as entropy around this one"
        )
    if not any(p.requires_grad for p in method.parameters()) or not train.epochs:
        return
    check(lesson, train, judge is not None)
    loop = Loop(method, lesson, train, seed)
    torch.manual_seed(number(seed, "training", lesson.index))
    if resume is not None:
        loop.load(resume)
    order = Order(method.taught(lesson), train, number(seed, lesson.index), method.adapts)
    steps, epochs, total = train.length(len(order))
    if train.warmup_kind == "linear" and train.warmup >= (epochs if train.per == "epoch" else total):
        unit = "epochs" if train.per == "epoch" else "iterations"
        method.cuts = {
            **method.cuts,
            "train.warmup": f"{train.warmup} {unit} are the whole training: lr is never reached",
        }
    while loop.cursor.step < total:
        epoch, done, loop.begun = loop.cursor.epoch, loop.cursor.place, loop.cursor.epoch * steps
        for place, batch in enumerate(order.epoch(epoch, steps)):
            step = epoch * steps + place
            if place < done or step >= total:
                continue
            lr = rate(train, epoch, step, epochs, total)
            terms = loop.take(replace(batch, step=step, progress=step / total), lr)
            method.end_step(step + 1, total)
            loop.cursor.place, loop.cursor.step = place + 1, step + 1
            if place + 1 == steps or step + 1 == total:
                method.end_epoch(epoch, epochs)
                collectives.check_same(method.state_dict(), f"after epoch {epoch + 1}")
                loop.cursor.epoch, loop.cursor.place = epoch + 1, 0
                rules = [] if train.select == "last" else [train.select]
                scores = judge(loop) if judge else criteria(method, lesson, rules, train.micro_batch)
                if rules:
                    loop.judge(scores, last=step + 1 == total)
            yield Step(epoch, step + 1, total, terms, lr, loop)
