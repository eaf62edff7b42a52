"""All that determines what a run learns, as one value."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from vlprompt.config.sources import PlainValue
from vlprompt.engine.train_config import TrainConfig

Arguments: TypeAlias = dict[str, PlainValue]  # constructor arguments by name, as YAML and JSON hold them


def hash_config(config: Mapping[str, PlainValue]) -> str:
    """Hash plain settings; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class RunConfig:
    """The resolved configuration of one run, with every default filled in.

    Args:
        backbone: what `load` takes.
        method: the name of the method and its constructor's arguments.
        task: the name of the task and its constructor's arguments.
        train: the fields of a `TrainConfig`.
        seed: of initial values, order and augmentations.
        preprocess: a preset's name or settings other than the backbone's own; None for its own.
    """

    backbone: str
    method: Arguments
    task: Arguments
    train: Arguments
    seed: int
    preprocess: str | Arguments | None = None

    @cached_property
    def train_config(self) -> TrainConfig:
        return TrainConfig(**self.train)

    def validate(self) -> None:
        """ValueError for a setting of training that is out of its range."""
        TrainConfig(**self.train)

    @property
    def hash(self) -> str:
        return hash_config(self.to_dict())

    def to_dict(self) -> Arguments:
        """Return what config.yaml and result.json hold."""
        return {
            "backbone": self.backbone,
            **({} if self.preprocess is None else {"preprocess": self.preprocess}),
            "method": self.method,
            "task": self.task,
            "train": self.train,
            "seed": self.seed,
        }
