"""run: a method and a task, joined; the few lines between data and results."""

import hashlib
import inspect
import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vlprompt import memory
from vlprompt.evaluate import evaluate
from vlprompt.method import Method, backbone_of
from vlprompt.readers import Reader
from vlprompt.results.folder import Folder, Result, tensors_as_bytes, written
from vlprompt.stage import Lesson, generator, named
from vlprompt.tasks import Task
from vlprompt.tower import Clip, Tower
from vlprompt.train import NotFinite, State, Train, fit
from vlprompt.vision import image_of

SELECTION = {"last": "last epoch", "val": "best epoch on validation images"}
Watch = Callable[[str, int, int, str], None]


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
    if issubclass(cls, Reader) and cls.__module__ == Reader.__module__:
        return cls.__name__.lower()
    return file if folder in ("vlprompt.methods", "vlprompt.tasks") else f"{cls.__module__}:{cls.__qualname__}"


def describe(thing: Any) -> dict[str, Any]:
    """A method or a task as configuration: its name and its constructor's arguments, stored under their names."""
    return {"name": title(type(thing))} | arguments(type(thing), lambda name, _: getattr(thing, name))


def key_of(config: dict[str, Any]) -> str:
    """The hash of a configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]


def configuration(method: Method, task: Task, train: Train, seed: int) -> dict[str, Any]:
    """What tells a run from others; `look` is in it where one was asked for."""
    backbone = backbone_of(method)
    image = None if backbone is None else image_of(backbone)
    return {
        "backbone": "" if backbone is None else backbone.spec,
        **({"look": plain(asdict(image.look))} if image is not None and image.asked else {}),
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
        "git": commit,
    }


def run(method: Method, task: Task, train: Train | None = None, folder: str | Path | None = None,
        seed: int | None = None, *, save_every: float = 5.0, watch: Watch | None = None) -> Result:  # fmt: skip
    """Train and test a method on a task.

    train: default `Train()`. folder: where to write (None: nowhere); a folder that holds this very run is resumed, or
    its result given at once. seed: of initial values, order and views; default the task's. save_every: seconds between
    two saved states. watch: called after each step and each batch of a test with (what, done, of how many,
    note). Raises NotFinite for a loss that is not a number, after saving the last good state.
    """
    train, seed = train or Train(), task.seed if seed is None else seed
    config = configuration(method, task, train, seed)
    if folder is None:
        return _run(method, task, train, seed, config, None, save_every, watch)
    place = Folder(Path(folder))
    if (result := place.done()) is not None and result.config == config:
        return result
    with place.opened(config):
        return place.done() or _run(method, task, train, seed, config, place, save_every, watch)


def _run(method: Method, task: Task, train: Train, seed: int, config: dict[str, Any], place: Folder | None,
         save_every: float, watch: Watch | None) -> Result:  # fmt: skip
    backbone, saved = backbone_of(method), place.load() if place else None
    image = None if backbone is None else image_of(backbone)
    device, key = (torch.device("cpu"), "") if image is None else (image.device, image.key)
    memory.forget(device)
    state, told = saved or (None, {"stage": 0, "scores": [], "classes": [], "seconds": 0.0, "log": 0, "trained": 0})
    began, trained, lessons = time.monotonic(), told["trained"], list[Lesson]()
    scores, classes = list(told["scores"]), list(told["classes"])
    with torch.random.fork_rng(), Log(place, told["log"]) as log:
        for index, stage in enumerate(task.stages()):
            lesson = stage.lesson
            method.begin(lesson, generator(seed, "begin", index))
            lessons.append(lesson.empty())
            trained = max(trained, sum(p.numel() for p in method.parameters()))
            if index < told["stage"]:
                continue
            resume = state if index == told["stage"] else None

            def save(now: State, index: int = index, trained: int = trained) -> None:
                if place is not None:
                    spent = told["seconds"] + time.monotonic() - began
                    log.flush()
                    about = {"stage": index, "scores": scores, "classes": classes, "seconds": spent}
                    place.save(now, {**about, "log": log.size, "trained": trained})

            _train(method, lesson, train, seed, resume, save, save_every, log, watch)
            method.end(lesson)
            scores.append({})
            classes.append({})
            for name, test in stage.tests.items():
                told_of = watch and (lambda done, total, name=name: watch(f"testing {name}", done, total, ""))
                found = evaluate(method, test, micro_batch=train.micro_batch, watch=told_of)
                scores[-1][name], classes[-1][name] = found.numbers, found.classes
    cost = {"seconds": told["seconds"] + time.monotonic() - began, "trained_parameters": trained}
    if backbone is not None and backbone.size:
        cost["trained_percent"] = 100 * trained / backbone.size
    cost["peak_memory_mb"] = memory.peak(device)
    learned = tensors_as_bytes(method.state_dict(), _learned(key, lessons, config))
    cost["stored_bytes"] = len(learned)
    cuts = {setting: how for part in method.modules() for setting, how in getattr(part, "cuts", {}).items()}
    protocol = {**task.protocol, "selection": SELECTION[train.select], "backbone_key": key, "cut": cuts}
    if image is not None:
        protocol |= {"transform": plain(asdict(image.look)), "cut": {**image.notes, **cuts}}
    result = Result(config, scores, task.summary(scores), cost, environment(device), protocol, classes)
    return result if place is None else place.finish(result, learned)


def _train(method: Method, lesson: Lesson, train: Train, seed: int, resume: State | None, save: Callable[[State], None],
           save_every: float, log: "Log", watch: Watch | None) -> None:  # fmt: skip
    last, step = time.monotonic(), None
    try:
        for step in fit(method, lesson, train, seed, resume):
            log.write({"stage": lesson.index, "epoch": step.epoch, "step": step.step, "lr": step.lr, **step.terms})
            if time.monotonic() - last >= save_every:
                save(step.loop.state())
                last = time.monotonic()
            if watch:
                watch("training", step.step, step.steps, f"loss {step.loss:.3f}  lr {step.lr:.1e}")
        if step is not None:
            save(step.loop.state())  # the tests may take long
    except NotFinite:
        if step is not None:
            save(step.loop.state())
        raise


class Log:
    """steps.jsonl: one line a step, cut back to what the resumed state knows."""

    def __init__(self, place: Folder | None, size: int):
        self.place, self.size, self.lines = place, size, list[bytes]()

    def __enter__(self) -> "Log":
        if self.place is not None:
            self.place.steps.touch()
            with self.place.steps.open("r+b") as file:
                file.truncate(self.size)
        return self

    def write(self, line: dict[str, Any]) -> None:
        self.lines.append((json.dumps(line) + "\n").encode())
        if len(self.lines) >= 1000:
            self.flush()

    def flush(self) -> None:
        if self.place is not None and self.lines:
            with written(self.place.steps), self.place.steps.open("ab") as file:
                file.write(b"".join(self.lines))
            self.size += sum(map(len, self.lines))
        self.lines = []

    def __exit__(self, *error: object) -> None:
        self.flush()


def _learned(key: str, lessons: list[Lesson], config: dict[str, Any]) -> dict[str, Any]:
    """What a learned state must say of itself, to be taken up again; the classes of all lessons above all."""
    names = [[[str(n), n.id, n.hand] for n in map(named, lesson.train.names)] for lesson in lessons]
    about = {"lessons": names, "total": lessons[0].total, "announced": lessons[0].announced}
    return {"config": config, "backbone_key": key, **about}


__all__ = ["Result", "configuration", "describe", "key_of", "run"]
