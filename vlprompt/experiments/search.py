"""Search: which settings are best on validation images, dataset by dataset, and the runs by those that were chosen."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch

from vlprompt.config.build import build_method, build_task
from vlprompt.config.describe import key_of
from vlprompt.config.resolve import layered, resolve
from vlprompt.core.towers import Backbone
from vlprompt.engine.evaluate import evaluate
from vlprompt.engine.loop import NotFinite
from vlprompt.engine.train_config import Train
from vlprompt.engine.vmap_training import at_once, fit_side_by_side
from vlprompt.experiments.runner import Watch, run
from vlprompt.results.search_folder import Searched
from vlprompt.runtime.seeding import generator
from vlprompt.tasks import Task

OWN = ("train.lr", "train.weight_decay")  # what settings that train side by side may differ in
OTHERS = ("scale_lr", "seed", "seeds")  # keys of `search` that are no lists of values


@dataclass(frozen=True)
class Setting:
    """One point of the grid: its values as the grid has them, and the whole configuration of its run."""

    values: dict[str, Any]
    plan: dict[str, Any]

    @property
    def key(self) -> str:
        return key_of(self.plan)

    @property
    def family(self) -> str:
        """What it has in common with those that may train beside it."""
        train = {k: v for k, v in self.plan["train"].items() if f"train.{k}" not in OWN}
        return key_of({**self.plan, "train": train})

    @property
    def train(self) -> Train:
        return Train(**self.plan["train"])


@dataclass(frozen=True)
class Study:
    """All settings of a method on a dataset, each once; told: the grid itself; seeds: of the final runs."""

    dataset: str
    settings: list[Setting]
    told: dict[str, Any]
    seeds: list[int]

    @property
    def config(self) -> dict[str, Any]:
        return {**self.settings[0].plan, "search": self.told}

    @cached_property
    def task(self) -> Task:
        """What all settings are trained and judged on."""
        return build_task(self.settings[0].plan["task"])

    def chosen(self, place: Searched) -> dict[str, Any] | None:
        """What was chosen before, None where nothing was; ValueError where the search began on other images."""
        if (began := place.began()) is not None and began.get("images") != self.images:
            raise ValueError(
                f"the images of {self.dataset} are not those of the search in {str(place.path)!r}: "
                "give another --out, or remove that folder and the runs beside it"
            )
        return place.chosen()

    @cached_property
    def images(self) -> dict[str, str]:
        """The hashes of the images that settings are trained on and judged by."""
        protocol = self.task.protocol
        return {part: protocol[part] for part in ("train", "test")}

    def place(self, runs: Path) -> Searched:
        method = self.settings[0].plan["method"]["name"].rpartition(":")[2]
        config = {"config": self.config, "settings": [s.key for s in self.settings]}
        return Searched(runs / f"search-{method}-{Path(self.dataset).name}-{key_of(config)}")

    def final(self, chosen: dict[str, Any]) -> list[dict[str, Any]]:
        """Configurations of the runs that train with the chosen setting and are tested."""
        [plan] = [s.plan for s in self.settings if s.key == chosen["key"]]
        return [{**plan, "task": {**plan["task"], "part": "final", "seed": s}, "seed": s} for s in self.seeds]


def _flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def study(method: str | None, dataset: str | None, seeds: Sequence[int] | None = None, *, task: str = "vtab",
          overrides: Sequence[str] = (), **how: Any) -> Study:  # fmt: skip
    """The grid of a method on a dataset: the product of the lists under `search` in its recipe, file and key=value.

    scale_lr: learning rates of the grid are for so many images a step, and are scaled by the batch; seed: of the
    search, default the first of seeds; seeds: of the final runs, where none are given. ValueError for a key that can't
    be searched.
    """
    how = {"dataset": dataset, "task": task, **how}
    given = [*overrides, "task.part=search"]
    told = dict(_flat(layered(method, overrides=given, **how).values.get("search", {})))
    axes = {k: v if isinstance(v, list) else [v] for k, v in told.items() if k not in OTHERS}
    if strange := [k for k in axes if k.partition(".")[0] not in ("train", "method") or "." not in k]:
        raise ValueError(
            f"search.{strange[0]} can't be searched: write search.train.NAME or search.method.NAME and a list of "
            f"values, for example search.train.lr=[0.1,0.01]; besides there are {', '.join(OTHERS)}"
        )
    if empty := [k for k, v in axes.items() if not v]:
        raise ValueError(f"search.{empty[0]} has no values; give a list, or leave it out")
    scale, final = told.get("scale_lr"), list(seeds or told.get("seeds") or [1])
    seed = told.get("seed", final[0])
    axes.setdefault("train.lr", [None])
    axes.setdefault("train.weight_decay", [None])
    found: dict[str, Setting] = {}
    resolved: dict[str, dict[str, Any]] = {}
    for combination in product(*axes.values()):
        values = {k: v for k, v in zip(axes, combination, strict=True) if v is not None or k not in OWN}
        others = [f"{k}={json.dumps(v)}" for k, v in values.items() if k not in OWN]
        own = {k.partition(".")[2]: _number(k, v) for k, v in values.items() if k in OWN}
        if (base := str(others)) not in resolved:
            source = layered(method, seed=seed, overrides=[*given, *others], **how)
            resolved[base] = resolve(source)
        plan = resolved[base]
        if scale and "lr" in own:
            own["lr"] = own["lr"] * plan["train"]["batch"] / scale
        plan = {**plan, "train": {**plan["train"], **own}}
        setting = Setting(values, plan)
        _ = setting.train  # says which value is out of its range
        found.setdefault(setting.key, setting)
    every = [*found.values()]
    told = {k: v for k, v in told.items() if k != "seeds"} | {"seed": seed}  # final seeds are no part of a search
    return Study(every[0].plan["task"]["dataset"], every, told, final)


def _number(key: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError("a truth value")
        return float(value)  # YAML reads 1e-3 as text
    except (TypeError, ValueError) as error:
        raise ValueError(f"search.{key} takes a list of numbers; got {value!r}") from error


def search(study: Study, place: Searched, clip: Backbone, save_every: float = 5.0,
           watch: Watch | None = None) -> dict[str, Any]:  # fmt: skip
    """The setting whose last epoch is best on the validation images; what is done in the folder is not done again.

    Of equally good ones the smaller learning rate, then the smaller weight decay. A setting whose loss is not a number
    is out; NotFinite when all are.
    """
    if (chosen := study.chosen(place)) is not None:
        return chosen
    with place.opened({**study.config, "images": study.images}):
        settings = study.settings
        if len(settings) > 1:
            _solve_all(settings, study.task, place, clip, save_every, watch)
        lines = place.lines()
        good = [s for s in settings if len(settings) == 1 or lines[s.key]["accuracy"] is not None]
        if not good:
            raise NotFinite(f"no setting of {study.dataset} came to a number; give smaller learning rates to search")

        def rank(s: Setting) -> tuple[float, float, float]:
            score = lines[s.key]["accuracy"] if s.key in lines else 0.0
            return -score, s.plan["train"]["lr"], s.plan["train"]["weight_decay"]

        best = min(good, key=rank)
        told = {"key": best.key, "values": best.values, "config": best.plan, "settings": len(settings)}
        told |= {"accuracy": lines[best.key]["accuracy"] if lines else None, "out": len(settings) - len(good)}
        told |= {"tied": sum(rank(s)[0] == rank(best)[0] for s in good) - 1}
        place.finish({**told, "seconds": sum(line["seconds"] for line in lines.values())})
    return {**told, "seconds": sum(line["seconds"] for line in lines.values())}


def _solve_all(settings: list[Setting], task: Task, place: Searched, clip: Backbone, save_every: float,
               watch: Watch | None) -> None:  # fmt: skip
    families: dict[str, list[Setting]] = {}
    for setting in settings:
        families.setdefault(setting.family, []).append(setting)
    [stage] = task.stages()
    for of_family in families.values():
        method = build_method(of_family[0].plan["method"], clip)
        method.begin(stage.lesson, generator(of_family[0].plan["seed"], "begin", 0))
        trains = any(p.requires_grad for p in method.parameters()) and of_family[0].train.epochs
        many = at_once(method, of_family[0].train) if trains else 1
        del method  # it may be as large as the tower
        chunks = [of_family[i : i + many] for i in range(0, len(of_family), many)] if trains else [of_family]
        for chunk in chunks:
            if all(s.key in place.lines() for s in chunk):
                continue
            together = len(chunk) if len(chunk) > 1 and trains else 1
            solve = _side_by_side if together > 1 else _by_itself
            scores, seconds = solve(chunk if trains else chunk[:1], task, place, clip, save_every, watch)
            scores = scores if trains else scores * len(chunk)
            place.add([{"key": s.key, "values": s.values, "lr": s.plan["train"]["lr"],
                        "weight_decay": s.plan["train"]["weight_decay"], "accuracy": score,
                        "seconds": seconds / len(chunk), "side_by_side": together}
                       for s, score in zip(chunk, scores, strict=True)])  # fmt: skip
            shutil.rmtree(place.now, ignore_errors=True)
            place.side.unlink(missing_ok=True)


def _side_by_side(chunk: list[Setting], task: Task, place: Searched, clip: Backbone, save_every: float,
                  watch: Watch | None) -> tuple[list[float | None], float]:  # fmt: skip
    keys, seeds, began = [s.key for s in chunk], [s.plan["seed"] for s in chunk], time.monotonic()
    (resume, spent), [stage] = place.load(keys), task.stages()
    methods = [build_method(s.plan["method"], clip) for s in chunk]
    for method, seed in zip(methods, seeds, strict=True):
        method.begin(stage.lesson, generator(seed, "begin", 0))
    last, step, scores = time.monotonic(), None, list[float | None]()
    with torch.random.fork_rng():
        for step in fit_side_by_side(methods, stage.lesson, [s.train for s in chunk], seeds, resume):
            if time.monotonic() - last >= save_every:
                place.save(step.side.standing(), keys, spent + time.monotonic() - began)
                last = time.monotonic()
            if watch:
                watch(f"{len(chunk)} settings side by side", step.step, step.steps, "")
        out = step.side.out if step is not None else resume.out if resume is not None else set()
        for i, method in enumerate(methods):
            method.end(stage.lesson)
            micro, found = chunk[i].train.micro_batch, None
            if i not in out:
                found = evaluate(method, stage.tests["val"], micro_batch=micro).numbers["accuracy"]
            scores.append(found)
    return scores, spent + time.monotonic() - began


def _by_itself(chunk: list[Setting], task: Task, place: Searched, clip: Backbone, save_every: float,
               watch: Watch | None) -> tuple[list[float | None], float]:  # fmt: skip
    [setting] = chunk
    method, seed = build_method(setting.plan["method"], clip), setting.plan["seed"]
    began, where = time.monotonic(), place.now / setting.key
    try:
        result = run(method, task, setting.train, where, seed, save_every=save_every, watch=watch)
    except NotFinite:
        return [None], time.monotonic() - began
    return [result.scores[-1]["val"]["accuracy"]], result.cost["seconds"]
