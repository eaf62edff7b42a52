"""How to train: settings, and the learning rate of a step."""

import math
from dataclasses import dataclass
from typing import Literal

from vlprompt.core.compute_options import How


@dataclass(frozen=True)
class Train:
    """How to train. The defaults are those of the CoOp family (SGD, cosine per epoch after one epoch at 1e-5).

    epochs: 0 trains nothing; iterations: steps in all, instead of epochs. batch, micro_batch: images a step, and at
    once (None: all; the gradient is the same). lr, momentum (sgd), betas, eps (adam, adamw), weight_decay: the
    optimizer's (paged_adamw: AdamW that makes room on a CUDA GPU, by bitsandbytes). schedule, per: cosine (its period
    is all epochs, as the CoOp family has it), cosine-rest (what is left of them after the warm-up, as VPT has it) or
    constant, stepped per epoch or per iteration, down to min_lr. warmup: epochs or iterations, at warmup_lr throughout
    (constant) or rising from it to lr (linear). clip: greatest norm of the gradient. precision: of the forward pass;
    parameters stay float32. drop_last: drop an incomplete last batch, unless it is the only one. views: how many
    augmented views of an image exist (None: one per epoch). select: what is kept, the "last" epoch or the one that is
    best (the first of equally good ones) on validation images ("val"), in an adaptation by entropy, density or
    agreement on the target's images (criteria.py), or by its test labels ("oracle").
    checkpointing: what the layers made is made again going back, instead of being kept. chunk: texts of so many classes
    at once (None: all), made again going back. compile: layers by torch.compile. graphs: on a GPU, passes of texts
    that come again are recorded and replayed, which keeps what they make in memory.
    """

    epochs: int = 50
    iterations: int | None = None
    batch: int = 32
    micro_batch: int | None = None
    optimizer: Literal["sgd", "adam", "adamw", "paged_adamw"] = "sgd"
    lr: float = 0.002
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "cosine-rest", "constant"] = "cosine"
    per: Literal["epoch", "iteration"] = "epoch"
    warmup: int = 1
    warmup_kind: Literal["constant", "linear"] = "constant"
    warmup_lr: float = 1e-5
    min_lr: float = 0.0
    clip: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    checkpointing: bool = False
    chunk: int | None = None
    compile: bool = False
    graphs: bool = True
    drop_last: bool = True
    views: int | None = None
    select: Literal["last", "val", "entropy", "density", "agreement", "oracle"] = "last"

    def __post_init__(self) -> None:
        least = {"epochs": 0, "batch": 1, "micro_batch": 1, "warmup": 0, "views": 1, "momentum": 0, "weight_decay": 0}
        least |= {"warmup_lr": 0, "min_lr": 0, "iterations": 1, "chunk": 1}
        for name, value in ((name, getattr(self, name)) for name in (*least, "lr", "eps", "clip")):
            if value is not None and name in least and not value >= least[name]:
                raise ValueError(f"train.{name} must be at least {least[name]}, not {value}")
            if value is not None and name not in least and not value > 0:
                raise ValueError(f"train.{name} must be above 0, not {value}")

    @property
    def how(self) -> How:
        return How(self.checkpointing, self.chunk, self.compile, self.graphs)

    def length(self, images: int) -> tuple[int, int, int]:
        """Steps in an epoch of so many images, epochs, and steps in all."""
        steps = images // self.batch if self.drop_last and images >= self.batch else -(-images // self.batch)
        if self.iterations is None:
            return steps, self.epochs, self.epochs * steps
        return steps, -(-self.iterations // steps), self.iterations


def rate(train: Train, epoch: int, step: int, epochs: int, total: int) -> float:
    """The learning rate of a step, of `total` in `epochs`.

    With per="epoch" and warmup=1 this is what the CoOp family trains with: 1e-5 in epoch 0, then
    lr (1 + cos(pi (e - 1) / epochs)) / 2, which never reaches min_lr. VPT trains with schedule="cosine-rest",
    warmup=10, warmup_kind="linear" and warmup_lr=0, so that its epoch 0 changes nothing.
    """
    now, whole = (epoch, epochs) if train.per == "epoch" else (step, total)
    if now < train.warmup:
        if train.warmup_kind == "constant":
            return train.warmup_lr
        return train.warmup_lr + (train.lr - train.warmup_lr) * now / train.warmup
    if train.schedule == "constant":
        return train.lr
    period = whole - train.warmup if train.schedule == "cosine-rest" else whole
    return train.min_lr + (train.lr - train.min_lr) * (1 + math.cos(math.pi * (now - train.warmup) / period)) / 2
