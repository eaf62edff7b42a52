"""Describe components as configuration: the name of a class and its constructor's arguments."""

import inspect
from collections.abc import Callable
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path

from vlprompt.config.run_config import Arguments, RunConfig
from vlprompt.config.sources import HEADS, PlainValue
from vlprompt.core.head import Head
from vlprompt.core.method import Method
from vlprompt.core.teacher import Teacher
from vlprompt.core.towers import Clip, Tower, VisionTower, find_input_tower
from vlprompt.engine.train_config import TrainConfig
from vlprompt.tasks import Task


def collect_arguments(cls: type, get_value: Callable[[str, object], object]) -> Arguments:
    """Return {argument: plain value} in the order of the constructor, without frozen backbones.

    Args:
        cls: the class.
        get_value: gives the value of an argument from its name and default.
    """
    arguments = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        value = get_value(name, parameter.default)
        if not isinstance(value, (Clip, Tower)) and value is not inspect.Parameter.empty:
            arguments[name] = to_plain_value(value)
    return arguments


def to_plain_value(value: object) -> PlainValue:
    """Convert a value to what YAML and JSON can hold."""
    if isinstance(value, (Method, Head)):
        return describe(value)
    if isinstance(value, Teacher):
        return asdict(value.settings)
    if isinstance(value, tuple | list):
        return [to_plain_value(v) for v in value]
    if isinstance(value, dict):
        return {k: to_plain_value(v) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain_value(asdict(value))
    return str(value) if isinstance(value, Path) else value


def title(cls: type) -> str:
    """Return the name of a class in a configuration: its file for a class of this package, else module:Class."""
    folder, _, file = cls.__module__.rpartition(".")
    if issubclass(cls, Head) and cls.__module__ in ("vlprompt.layers.heads", "vlprompt.layers.verbalizers"):
        return next(name for name, head in HEADS.items() if head == cls.__name__)
    return file if folder in ("vlprompt.methods", "vlprompt.tasks") else f"{cls.__module__}:{cls.__qualname__}"


def describe(component: object) -> Arguments:
    """Return a method, head or task as configuration: its name and its constructor's arguments.

    Raises:
        ValueError: for a class that does not store an argument under its own name.
    """
    cls = type(component)

    def get_stored(name: str, default: object) -> object:
        if not hasattr(component, name):
            raise ValueError(
                f"{title(cls)}: expected a constructor that stores its argument {name}, got no attribute of that name. "
                f"Set self.{name} = {name} in it."
            )
        value = getattr(component, name)
        # where a function of the class has the argument's name, the value is stored with an underscore
        return getattr(component, f"{name}_") if inspect.ismethod(value) else value

    return {"name": title(cls)} | collect_arguments(cls, get_stored)


def describe_run(method: Method, task: Task, config: TrainConfig | RunConfig, seed: int) -> RunConfig:
    """Return the configuration of a run on the backbone that the method has.

    Args:
        config: one that was resolved already, or the training alone; method and task are then described from what
            they store.
    """
    if not isinstance(config, RunConfig):
        train = to_plain_value(asdict(config))
        config = RunConfig("", describe(method), describe(task), train, seed)
    backbone = method.backbone
    tower = None if backbone is None else find_input_tower(backbone)
    preprocess = None
    if isinstance(tower, VisionTower) and tower.has_custom_preprocessing:
        preprocess = to_plain_value(asdict(tower.preprocessing))
    return replace(config, backbone="" if backbone is None else backbone.spec, preprocess=preprocess, seed=seed)
