"""Settings of a training, and the learning rate of a step."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from vlprompt.core.batch import LabelLoss, Split
from vlprompt.core.compute_options import ComputeOptions
from vlprompt.layers.label_losses.choice import LossKind, LossSettings
from vlprompt.layers.label_losses.several_labels import UnknownUse

MINIMUM = {
    "epochs": 0,
    "first_epochs": 0,
    "batch_size": 1,
    "micro_batch_size": 1,
    "warmup": 0,
    "augmentations": 1,
    "momentum": 0,
    "weight_decay": 0,
    "warmup_lr": 0,
    "min_lr": 0,
    "iterations": 1,
    "text_micro_batch": 1,
    "schedule_period": 1,
    "loss_margin": 0,
}
POSITIVE = ("lr", "first_lr", "eps", "grad_clip", "milestone_factor", "loss_q", "loss_weight")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training; in YAML the section `train`.

    The defaults are those of the CoOp family: SGD, a cosine stepped per epoch after one epoch at 1e-5.

    Args:
        epochs: passes over the training items; 0 trains nothing.
        iterations: steps in all, instead of epochs.
        first_epochs: epochs of the first lesson of a stream (None: as of the others).
        batch_size: items per optimizer step.
        loss: by which every method learns from labels. Of items with one label each: cross-entropy (ce, the default),
            or generalised cross-entropy (gce), which learns less from wrong ones. Of items with several labels: binary
            cross-entropy of the known entries of an item over the number of classes (bce, the default), or over the
            number of known entries (partial_bce), or the asymmetric loss, their sum (asl).
        loss_q: of gce, between cross-entropy (towards 0) and the mean absolute error (1).
        loss_weight: by which the loss of labels is multiplied.
        loss_gammas: of asl, the focusing of present and of absent labels.
        loss_margin: of asl, added to the probability of being absent.
        loss_unknown: of several labels, leave unknown entries out (ignore), or take them as absent (negative).
        micro_batch_size: items per forward and backward pass (None: the batch); the gradient is the same, but for what
            dropout draws.
        optimizer: paged_adamw is AdamW with states that move to CPU memory when a CUDA GPU is full (bitsandbytes).
        lr: learning rate after the warm-up.
        first_lr: that of the first lesson of a stream (None: as of the others).
        momentum: of sgd.
        betas: of adam and adamw.
        eps: of adam and adamw.
        weight_decay: of every optimizer.
        schedule: cosine (its period is all epochs, as in the CoOp family), cosine-after-warmup (its period is what is
            left after the warm-up, as in VPT), milestones or constant.
        schedule_period: length of the cosine in schedule units, after which the rate rises again, falls again and so
            on (None: one fall, as the schedule says).
        milestones: of schedule=milestones, the units (from 0) from which the rate is lower, in rising order.
        milestone_factor: by which each milestone multiplies the rate.
        schedule_unit: whether the schedule is stepped per epoch or per iteration.
        warmup: length of the warm-up, in schedule units.
        warmup_kind: at warmup_lr throughout (constant), or rising from warmup_lr to lr (linear).
        warmup_lr: learning rate of the warm-up.
        min_lr: where the cosine ends.
        grad_clip: largest norm of the gradient (None: no clipping).
        precision: of the forward pass; parameters stay float32.
        activation_checkpointing: recompute layer activations in the backward pass instead of storing them.
        text_micro_batch: class texts encoded at once and recomputed in the backward pass (None: all, stored); the
            same, but for what dropout draws.
        cuda_graphs: on a GPU, record passes of texts and of images that come again and replay them; what they compute
            stays in memory.
        drop_last: drop an incomplete last batch, unless it is the only one.
        augmentations: how many augmented views of an image exist (None: one per epoch).
        model_selection: which parameters remain: those of the last epoch, or of the epoch that is best (the first of
            equally good ones) on validation images (val), in a domain adaptation by entropy, density or agreement on
            the target's images (engine/model_selection.py), or by its test labels (oracle).

    Raises:
        ValueError: for a value out of its range, with its key.
    """

    epochs: int = 50
    first_epochs: int | None = None
    iterations: int | None = None
    batch_size: int = 32
    loss: LossKind | None = None
    loss_q: float = LossSettings.q
    loss_weight: float = LossSettings.weight
    loss_gammas: tuple[float, float] = LossSettings.gammas
    loss_margin: float = LossSettings.margin
    loss_unknown: UnknownUse = LossSettings.unknown
    micro_batch_size: int | None = None
    optimizer: Literal["sgd", "adam", "adamw", "paged_adamw"] = "sgd"
    lr: float = 0.002
    first_lr: float | None = None
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "cosine-after-warmup", "milestones", "constant"] = "cosine"
    schedule_period: int | None = None
    milestones: tuple[int, ...] = ()
    milestone_factor: float = 0.1
    schedule_unit: Literal["epoch", "iteration"] = "epoch"
    warmup: int = 1
    warmup_kind: Literal["constant", "linear"] = "constant"
    warmup_lr: float = 1e-5
    min_lr: float = 0.0
    grad_clip: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool = False
    text_micro_batch: int | None = None
    cuda_graphs: bool = True
    drop_last: bool = True
    augmentations: int | None = None
    model_selection: Literal["last", "val", "entropy", "density", "agreement", "oracle"] = "last"

    def __post_init__(self) -> None:
        for name, minimum in MINIMUM.items():
            if (value := getattr(self, name)) is not None and not value >= minimum:
                raise ValueError(
                    f"train.{name}: expected at least {minimum}, got {value}. Set train.{name}={minimum} or more."
                )
        for name in POSITIVE:
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"train.{name}: expected a value above 0, got {value}. Set a higher train.{name}.")

        if self.loss_q > 1:
            raise ValueError(f"train.loss_q: expected at most 1, got {self.loss_q}. Set train.loss_q=0.7.")
        if min(self.loss_gammas) < 0:
            raise ValueError(
                f"train.loss_gammas: expected two numbers of at least 0, got {list(self.loss_gammas)}. Set "
                "train.loss_gammas=[1,2]."
            )
        if (self.schedule == "milestones") != bool(self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise ValueError(
                f"train.milestones: expected epochs (or iterations) in rising order with train.schedule=milestones, "
                f"and none with another schedule, got {list(self.milestones)} with {self.schedule}. Set both."
            )

    def for_lesson(self, index: int) -> "TrainConfig":
        """Return the settings of a lesson (from 0) of a stream."""
        if index or (self.first_epochs is None and self.first_lr is None):
            return self
        epochs = self.epochs if self.first_epochs is None else self.first_epochs
        return replace(self, epochs=epochs, lr=self.lr if self.first_lr is None else self.first_lr)

    @property
    def loss_settings(self) -> LossSettings:
        weight, (present, absent), margin = self.loss_weight, self.loss_gammas, self.loss_margin  # files have lists
        gammas = present, absent
        return LossSettings(self.loss, self.loss_q, weight, gammas, margin, self.loss_unknown)

    def build_label_loss(self, train: Split) -> LabelLoss:
        """Return the loss of labels of a training on these items; ValueError for one of another kind of labels."""
        return self.loss_settings.build(train)

    @property
    def compute_options(self) -> ComputeOptions:
        return ComputeOptions(self.activation_checkpointing, self.text_micro_batch, self.cuda_graphs)

    def count_steps(self, n_images: int) -> tuple[int, int, int]:
        """Count (steps per epoch, epochs, steps in all) of a training on n_images."""
        drops_last = self.drop_last and n_images >= self.batch_size
        steps = n_images // self.batch_size if drops_last else -(-n_images // self.batch_size)
        if self.iterations is None:
            return steps, self.epochs, self.epochs * steps
        return steps, -(-self.iterations // steps), self.iterations


def compute_learning_rate(config: TrainConfig, epoch: int, step: int, n_epochs: int, n_steps: int) -> float:
    """Compute the learning rate of one step (0-based), of n_steps in n_epochs.

    With schedule_unit="epoch" and warmup=1 these are the rates of the CoOp family: 1e-5 in epoch 0, then
    lr (1 + cos(pi (e - 1) / epochs)) / 2, which never reaches min_lr. VPT trains with schedule="cosine-after-warmup",
    warmup=10, warmup_kind="linear" and warmup_lr=0, so that its epoch 0 changes nothing.
    """
    position, length = (epoch, n_epochs) if config.schedule_unit == "epoch" else (step, n_steps)
    if position < config.warmup:
        if config.warmup_kind == "constant":
            return config.warmup_lr
        return config.warmup_lr + (config.lr - config.warmup_lr) * position / config.warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "milestones":
        return config.lr * config.milestone_factor ** sum(position >= milestone for milestone in config.milestones)
    full = length - config.warmup if config.schedule == "cosine-after-warmup" else length
    period = config.schedule_period or full
    return (
        config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * (position - config.warmup) / period)) / 2
    )
