"""What a run is told by: its configuration, and the machine that it ran on."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlprompt.core.head import Reader
from vlprompt.core.introspection import backbone_of
from vlprompt.core.method import Method
from vlprompt.core.towers import Clip, Tower, VisionTower, tower_of
from vlprompt.engine.train_config import Train
from vlprompt.tasks import Task


def arguments(cls: type, value_of: Callable[[str, Any], Any]) -> dict[str, Any]:
    """{argument: value} of a constructor, in its order; frozen backbones are named apart and left out."""
    found = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        value = value_of(name, parameter.default)
        if not isinstance(value, (Clip, Tower)) and value is not inspect.Parameter.empty:
            found[name] = plain(value)
    return found


def plain(value: Any) -> Any:
    """What YAML and JSON can hold."""
    if isinstance(value, (Method, Reader)):
        return describe(value)
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def title(cls: type) -> str:
    """The name of a class in a configuration: its file for ours, module:Class for a stranger's."""
    folder, _, file = cls.__module__.rpartition(".")
    if issubclass(cls, Reader) and cls.__module__ in ("vlprompt.layers.heads", "vlprompt.layers.verbalizers"):
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
    return file if folder in ("vlprompt.methods", "vlprompt.tasks") else f"{cls.__module__}:{cls.__qualname__}"


def describe(thing: Any) -> dict[str, Any]:
    """A method or a task as configuration: its name and its constructor's arguments, stored under their names."""

    def stored(name: str, default: Any) -> Any:
        value = getattr(thing, name)
        return getattr(thing, f"{name}_") if inspect.ismethod(value) else value  # a method has that name already

    return {"name": title(type(thing))} | arguments(type(thing), stored)


def key_of(config: dict[str, Any]) -> str:
    """The hash of a configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]


def configuration(method: Method, task: Task, train: Train, seed: int) -> dict[str, Any]:
    """What tells a run from others; `look` is in it where one was asked for."""
    backbone = backbone_of(method)
    image = None if backbone is None else tower_of(backbone)
    look = image.look if isinstance(image, VisionTower) and image.asked else None
    return {
        "backbone": "" if backbone is None else backbone.spec,
        **({"look": plain(asdict(look))} if look else {}),
        "method": describe(method),
        "task": describe(task),
        "train": plain(asdict(train)),
        "seed": seed,
    }
