"""What a run is told by: its configuration, and the machine that it ran on."""

import hashlib
import inspect
import json
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vlprompt import world
from vlprompt.method import Method, backbone_of
from vlprompt.readers import Reader
from vlprompt.stage import Lesson, named
from vlprompt.tasks import Task
from vlprompt.tower import Clip, Tower
from vlprompt.train import Train
from vlprompt.vision import VisionTower, tower_of


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
    if issubclass(cls, Reader) and cls.__module__ in ("vlprompt.readers", "vlprompt.words"):
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that was put on the path, not installed
        return None


def environment(device: torch.device) -> dict[str, Any]:
    here = Path(__file__).parents[1]
    found = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    commit = found.stdout.strip() if (here / ".git").exists() and not found.returncode else None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {
        package: _version(package) for package in ("vlprompt", "torch", "torchvision", "open_clip_torch", "timm")
    }
    return {
        "python": platform.python_version(),
        **versions,
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "processes": world.size(),
        "git": commit,
    }


def learned_from(key: str, lessons: list[Lesson], config: dict[str, Any]) -> dict[str, Any]:
    """What a learned state must say of itself, to be taken up again; the classes of all lessons above all."""
    names = [[[str(n), n.id, n.hand, n.words] for n in map(named, lesson.train.names)] for lesson in lessons]
    about = {"lessons": names, "total": lessons[0].total, "announced": lessons[0].announced}
    about["domains"] = [list(lesson.domains) for lesson in lessons]
    return {"config": config, "backbone_key": key, **about}
