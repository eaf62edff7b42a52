"""Train a method on one lesson: `fit` is a generator, so the caller's for loop is the callback."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.head import Fixed
from vlprompt.core.introspection import apply_compute_options
from vlprompt.core.method import LossTerms, Method
from vlprompt.core.method_wrapper import MethodWrapper
from vlprompt.core.stage import Lesson
from vlprompt.engine import optimizers
from vlprompt.engine.data_parallel import GradientSync
from vlprompt.engine.epoch_batches import EpochBatches, validate_lesson
from vlprompt.engine.model_selection import compute_selection_scores
from vlprompt.engine.train_config import TrainConfig, compute_learning_rate
from vlprompt.layers.label_losses.watched import WatchedLoss
from vlprompt.runtime import collectives, distributed
from vlprompt.runtime.errors import NonFiniteError, is_finite
from vlprompt.runtime.seeding import capture_random_states, derive_seed, restore_random_states

Differentiate: TypeAlias = Callable[..., tuple[Tensor, ...]]  # as torch.autograd.grad


@dataclass
class State:
    """Everything that a resume needs.

    Args:
        epoch: epoch of the next step, from 0.
        batch_index: batches of this epoch that are done.
        step: steps that are done.
        best_score: score of the best epoch so far, where model selection compares epochs.
        tensors: parameters and buffers, optimizer state, random states, the best parameters.
        scaler: state of the gradient scaler (fp16).
    """

    epoch: int = 0
    batch_index: int = 0
    step: int = 0
    best_score: float | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One finished optimizer step.

    Args:
        epoch: from 0.
        step: from 1.
        total_steps: of the whole training.
        terms: name -> mean of each loss term.
        lr: learning rate of the step.
        loop: `loop.state()` is what to save after this step.
    """

    epoch: int
    step: int
    total_steps: int
    terms: dict[str, float]
    lr: float
    loop: "Loop"

    @property
    def loss(self) -> float:
        return sum(self.terms.values())


class Loop:
    """One training: method, optimizer, scaler, and the cursor that says where it stands."""

    def __init__(
        self,
        method: Method,
        lesson: Lesson,
        config: TrainConfig,
        seed: int,
        differentiate: Differentiate = torch.autograd.grad,
    ):
        self.method, self.lesson, self.config, self.seed = method, lesson, config, seed
        self.differentiate = differentiate
        needs_whole_batch = any(getattr(part, "needs_whole_batch", False) for part in method.modules())
        if config.micro_batch_size is not None and needs_whole_batch:
            raise ValueError(
                f"train.micro_batch_size: expected null for {type(method).__name__}, which normalises over the whole "
                f"batch, got {config.micro_batch_size}. Leave train.micro_batch_size out, and set a smaller "
                "train.batch_size."
            )
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer = optimizers.build_optimizer(method.param_groups(), config, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.cursor, self.label_loss = State(), WatchedLoss(config.build_label_loss(lesson.train))
        self.changed_loss, self.adds_up_terms = config.loss_settings.changed, adds_up_terms(method)
        self.fixed: dict[tuple[Names, tuple[str, ...]], Fixed] = {}
        self.gradient_sync = GradientSync(method, self.parameters, derive_seed(seed, lesson.index))
        self.epoch_start_step = 0
        self.best_state: dict[str, Tensor] = {}
        self.epoch_scores: Mapping[str, float] = {}  # of the last epoch that ended

    def state(self) -> State:
        """Copy everything that the next step depends on."""
        tensors = {f"method/{k}": v.detach().clone() for k, v in self.method.state_dict().items()}
        tensors |= {f"optimizer/{k}": v for k, v in optimizers.export_optimizer_state(self.optimizer).items()}
        tensors |= {f"best/{k}": v for k, v in self.best_state.items()}
        tensors |= capture_random_states(self.device)
        return replace(self.cursor, tensors=tensors, scaler=self.scaler.state_dict())

    def load(self, state: State) -> None:
        """Restore a state of the same method and lesson."""
        self.method.load_state_dict({k[7:]: v for k, v in state.tensors.items() if k.startswith("method/")})
        optimizers.load_optimizer_state(
            self.optimizer, {k[10:]: v for k, v in state.tensors.items() if k.startswith("optimizer/")}
        )
        restore_random_states(state.tensors, self.device)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        self.best_state = {k[5:]: v for k, v in state.tensors.items() if k.startswith("best/")}
        self.cursor = State(state.epoch, state.batch_index, state.step, state.best_score)

    def update_best(self, scores: Mapping[str, float], is_last: bool) -> None:
        """Remember the parameters of the best epoch so far; after the last epoch restore them."""
        if (score := scores.get(self.config.model_selection)) is None:
            raise ValueError(
                f"train.model_selection: expected a rule that can be scored here, got {self.config.model_selection} ("
                f"agreement needs a method with pseudo-labels or a CLIP, whose "
                "zero-shot "
                "predictions they are; oracle needs a target). Set train.model_selection=last, or val."
            )
        if self.cursor.best_score is None or score > self.cursor.best_score:
            self.cursor.best_score = score
            self.best_state = {k: v.detach().clone() for k, v in self.method.state_dict().items()}
        if is_last:
            self.method.load_state_dict(self.best_state)

    def precompute(self, names: Names) -> Fixed:
        """Call `method.precompute` once per list of class names."""
        key = (names, class_ids(names))  # two classes may share a name
        if key not in self.fixed:
            with torch.no_grad():
                self.fixed[key] = self.method.precompute(names)
        return self.fixed[key]

    def compute_gradients(self, batch: Batch) -> tuple[dict[str, float], list[Tensor]]:
        """Compute the loss terms and the merged gradient of a batch.

        Terms are means with the number of rows they are over. Micro-batches and processes add up sums and counts, which
        are divided once, so that the result is that of the whole batch.

        Returns:
            name -> mean of each term, and one gradient for each of `parameters`.

        Raises:
            ValueError: if no parameter takes part in the loss, or for a train.loss that the method does not ask for.
        """
        fixed, batch = self.precompute(batch.names), replace(batch, label_loss=self.label_loss)
        sums: dict[str, list[Tensor]] = {}
        counts: dict[str, float] = {}
        values: dict[str, float] = {}
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        parts = self.gradient_sync.split_batch(batch, self.config.micro_batch_size)
        joins_terms = len(parts) == distributed.get_world_size() == 1 and self.adds_up_terms
        for part in parts:
            autocast = torch.autocast(self.device.type, dtype) if dtype else nullcontext()
            options = apply_compute_options(self.method, self.config.compute_options)
            with options, self.gradient_sync.divide_preparation(), autocast:
                terms, _ = self.method.loss_terms(part, fixed)
            for name, (mean, n_rows) in terms.items():
                values[name] = values.get(name, 0.0) + float(mean.detach()) * float(n_rows)
                counts[name] = counts.get(name, 0.0) + float(n_rows)
            trained = {name: term for name, term in terms.items() if term[0].requires_grad}
            trained, leaves = join_terms(trained) if joins_terms else trained, self.gradient_sync.passes.leaves
            for i, (name, (mean, n_rows)) in enumerate(trained.items()):
                grads = self.differentiate(
                    self.scaler.scale(mean * n_rows),
                    [*self.parameters, *leaves],
                    retain_graph=i < len(trained) - 1 or bool(leaves),
                    allow_unused=True,
                    materialize_grads=True,
                )
                sums[name] = [a + b for a, b in zip(sums[name], grads, strict=True)] if name in sums else list(grads)
        if counts:
            self.require_loss_use()
        values, counts, sums = self.gradient_sync.reduce_sums((values, counts, sums))
        if not sums:
            raise ValueError(
                f"{type(self.method).__name__}: expected a loss with a gradient, got one that no parameter takes part "
                "in. Use the parameters in forward, without detach() or no_grad()."
            )
        means = {name: value / max(counts[name], 1.0) for name, value in values.items()}
        return means, self.method.merge_gradients(
            {name: [g / max(counts[name], 1.0) for g in grads] for name, grads in sums.items()}
        )

    def require_loss_use(self) -> None:
        """Raise ValueError for settings of train.loss which the method has not asked for in a step."""
        if self.changed_loss:
            self.label_loss.require_use(", ".join(self.changed_loss), type(self.method).__name__)

    def take_step(self, batch: Batch, lr: float) -> dict[str, float]:
        """Take one optimizer step on a batch.

        Raises:
            NonFiniteError: for a loss or gradient that is not finite; nothing has changed then.
        """
        terms, grads = self.compute_gradients(batch)
        self.apply_gradients(terms, grads, lr)
        return terms

    def apply_gradients(self, terms: dict[str, float], grads: list[Tensor], lr: float) -> None:
        """Clip, unscale and apply gradients that are given in the order of `parameters`."""
        culprit = next((name for name, value in terms.items() if not math.isfinite(value)), None)
        if culprit is None and not self.scaler.is_enabled() and not _are_finite(grads):
            culprit = "gradient"
        if culprit is not None:
            raise NonFiniteError(
                f"{culprit}: expected a finite value at step {self.cursor.step + 1}, got terms {terms} (epoch "
                f"{self.cursor.epoch}, learning rate {lr:.3g}); the parameters are those of the step before. "
                "Lower train.lr, set train.grad_clip=1, or train.precision=fp32."
            )
        idle = {id(p) for p in self.method.idle_parameters()}
        for p, g in zip(self.parameters, grads, strict=True):
            p.grad = None if id(p) in idle else g
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        self.scaler.unscale_(self.optimizer)
        if self.config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def adds_up_terms(method: Method) -> bool:
    """Whether the merged gradient of a method is the sum of those of its terms."""
    mergers = {type(part).merge_gradients for part in method.modules() if isinstance(part, Method)}
    return mergers <= {Method.merge_gradients, MethodWrapper.merge_gradients}


def join_terms(terms: LossTerms) -> LossTerms:
    """Join terms whose gradients are added up to a single one, by the name of one of them: one backward pass for all.

    Only for terms over all rows that there are: sums over parts of a batch are divided by each term's own rows.
    """
    counted = {name: (mean, n_rows) for name, (mean, n_rows) in terms.items() if n_rows}
    if len(counted) < 2:
        return terms
    name = max(counted, key=lambda name: float(counted[name][1]))
    return {name: (torch.stack([mean for mean, _ in counted.values()]).sum(), counted[name][1])}


# after an epoch: a score for each rule of train.model_selection, higher is better
EpochScorer = Callable[[Loop], Mapping[str, float]]


def fit(
    method: Method,
    lesson: Lesson,
    config: TrainConfig,
    seed: int = 1,
    resume: State | None = None,
    score_epoch: EpochScorer | None = None,
    differentiate: Differentiate = torch.autograd.grad,
) -> Iterator[Step]:
    """Train a method that has begun a lesson, and yield after each step.

    The order of the items and their augmentations are pure functions of (seed, epoch). A method without trainable
    parameters yields nothing.

    Args:
        resume: the state to go on from, exactly where it was taken.
        score_epoch: scores an epoch in place of `compute_selection_scores`; it may know rules that need more than the
            lesson (the oracle).
        differentiate: takes the gradients of the loss; that of a `GroupMember` shares the work with other trainings.

    Raises:
        ValueError: for a lesson without images, without labels for a method that needs them, or without what
            train.model_selection compares.
        NonFiniteError: for a loss or gradient that is not finite.
    """
    method.train()
    config = config.for_lesson(lesson.index)
    _require_labels(method, lesson, config)
    if not any(p.requires_grad for p in method.parameters()) or not config.epochs:
        return
    validate_lesson(lesson, config, score_epoch is not None)
    loop = Loop(method, lesson, config, seed, differentiate)
    torch.manual_seed(derive_seed(seed, "training", lesson.index))
    if resume is not None:
        loop.load(resume)
    order = EpochBatches(
        method.training_lesson(lesson), config, derive_seed(seed, lesson.index), method.needs_unlabelled
    )
    steps, epochs, total_steps = config.count_steps(len(order))
    _note_endless_warmup(method, config, epochs, total_steps)
    while loop.cursor.step < total_steps:
        epoch, n_done, loop.epoch_start_step = loop.cursor.epoch, loop.cursor.batch_index, loop.cursor.epoch * steps
        for index, batch in enumerate(order.iter_epoch(epoch, steps)):
            step = epoch * steps + index
            if index < n_done or step >= total_steps:
                continue
            begin, end = find_schedule_span(method.schedule_starts(total_steps), step, total_steps)
            n_epochs = -(-(end - begin) // steps)
            lr = compute_learning_rate(config, (step - begin) // steps, step - begin, n_epochs, end - begin)
            terms = loop.take_step(replace(batch, step=step, progress=step / total_steps), lr)
            method.end_step(step + 1, total_steps)
            loop.cursor.batch_index, loop.cursor.step = index + 1, step + 1
            if index + 1 == steps or step + 1 == total_steps:
                _end_epoch(loop, epoch, epochs, score_epoch, is_last=step + 1 == total_steps)
            yield Step(epoch, step + 1, total_steps, terms, lr, loop)
    for p in loop.parameters:
        p.grad = None  # in a stream, parameters of earlier lessons would hold theirs to the end


def _are_finite(grads: Sequence[Tensor]) -> bool:
    """Whether all numbers are finite. Their sum says so in one pass, except where it overflows."""
    sums = torch.stack([g.sum() for g in grads]) if grads else torch.zeros(())
    return math.isfinite(sums.sum()) or all(map(is_finite, grads))


def find_schedule_span(starts: Sequence[int], step: int, total_steps: int) -> tuple[int, int]:
    """Return where the learning-rate schedule of a step (0-based) begins, and where the next one does."""
    return max(i for i in starts if i <= step), min([*(i for i in starts if i > step), total_steps])


def _end_epoch(loop: Loop, epoch: int, epochs: int, score_epoch: EpochScorer | None, is_last: bool) -> None:
    method, config = loop.method, loop.config
    method.end_epoch(epoch, epochs)
    collectives.require_same_state(method.state_dict(), f"after epoch {epoch + 1}")
    loop.cursor.epoch, loop.cursor.batch_index = epoch + 1, 0
    rules = [] if config.model_selection == "last" else [config.model_selection]
    if score_epoch:
        scores = score_epoch(loop)
    else:
        scores = compute_selection_scores(method, loop.lesson, rules, config.micro_batch_size)
    loop.epoch_scores = scores
    if rules:
        loop.update_best(scores, is_last)


def _require_labels(method: Method, lesson: Lesson, config: TrainConfig) -> None:
    """ValueError for a lesson of unlabelled images only, where the method would train on labels."""
    is_unlabelled = bool(lesson.unlabelled) and not len(lesson.train)
    if is_unlabelled and not method.needs_unlabelled and config.epochs and method.state_dict():
        raise ValueError(
            f"{type(method).__name__}: expected labelled images, got a lesson with unlabelled ones only. Name a source "
            "by --source, or choose a method that learns from unlabelled images, such as entropy around this one."
        )


def _note_endless_warmup(method: Method, config: TrainConfig, epochs: int, total_steps: int) -> None:
    """Note in the result that the warm-up takes the whole training, so that lr is never reached."""
    length = epochs if config.schedule_unit == "epoch" else total_steps
    if config.warmup >= length and config.warmup_lr != config.lr:
        unit = "epoch" if config.schedule_unit == "epoch" else "iteration"
        rate = f" at warmup_lr {config.warmup_lr:g}" * (config.warmup_kind == "constant")
        verb = "s are" if config.warmup != 1 else " is"
        note = f"{config.warmup} {unit}{verb} the whole training{rate}: lr is never reached"
        method.clipped_settings = {**method.clipped_settings, "train.warmup": note}
