"""Search for the settings that are best on validation images, dataset by dataset."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch

from vlprompt.config.build import build_method, build_task
from vlprompt.config.resolve import load_layered_config, resolve
from vlprompt.config.run_config import RunConfig, hash_config
from vlprompt.config.sources import Override, Settings, iter_flat_settings, nest_setting
from vlprompt.core.stage import Stage
from vlprompt.core.towers import Backbone
from vlprompt.engine.evaluate import evaluate
from vlprompt.engine.vmap_training import count_vmapped_runs, fit_vmapped
from vlprompt.experiments.events import Listener, SearchStarted, VmapStepDone, ignore_event
from vlprompt.experiments.inputs import describe_inputs
from vlprompt.experiments.runner import run
from vlprompt.results.run_inputs import ChangedInputsError, Inputs
from vlprompt.results.search_folder import SearchFolder
from vlprompt.runtime.errors import NonFiniteError
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import Task

VMAP_KEYS = ("train.lr", "train.weight_decay")  # what settings that train vmapped may differ in
SEARCH_OPTIONS = ("lr_base_batch_size", "seed", "seeds")  # keys of `search` that are no lists of values


@dataclass(frozen=True)
class GridPoint:
    """One point of the grid.

    Args:
        values: as the grid has them.
        config: the configuration of its run.
    """

    values: dict[str, Any]
    config: RunConfig

    @property
    def key(self) -> str:
        return self.config.hash

    @property
    def vmap_group(self) -> str:
        """What it has in common with the points that it may train with in one vmapped pass."""
        train = {k: v for k, v in self.config.train.items() if f"train.{k}" not in VMAP_KEYS}
        return hash_config({**self.config.to_dict(), "train": train})


@dataclass(frozen=True)
class Study:
    """The grid of a method on a dataset.

    Args:
        dataset: its name.
        settings: the points, each once.
        search_space: the `search` section that they come from.
        final_seeds: of the runs with the chosen point.
    """

    dataset: str
    settings: list[GridPoint]
    search_space: dict[str, Any]
    final_seeds: list[int]

    @property
    def config(self) -> dict[str, Any]:
        return {**self.settings[0].config.to_dict(), "search": self.search_space}

    @cached_property
    def task(self) -> Task:
        """What all points are trained and judged on."""
        return build_task(self.settings[0].config.task)

    @cached_property
    def inputs(self) -> Inputs:
        """The data and files that points are trained on and judged by."""
        return describe_inputs(self.task, self.settings[0].config)

    def get_folder(self, runs_folder: Path, fresh: bool = False) -> SearchFolder:
        """Return the folder of the search on these inputs.

        Args:
            runs_folder: where it lies.
            fresh: take a new folder beside it where the search in it began on other inputs.

        Raises:
            ChangedInputsError: for such a search without `fresh`.
        """
        method = self.settings[0].config.method["name"].rpartition(":")[2]
        config = {"config": self.config, "settings": [point.key for point in self.settings]}
        folder = SearchFolder(runs_folder / f"search-{method}-{Path(self.dataset).name}-{hash_config(config)}")
        fresh_folder = SearchFolder(folder.path.with_name(f"{folder.path.name}-{hash_config(self.inputs)[:6]}"))
        changes = folder.list_changed_inputs(self.inputs)
        if not changes or fresh or fresh_folder.path.exists():
            return fresh_folder if changes else folder
        raise ChangedInputsError(
            f"{str(folder.path)!r}: expected a search of {self.dataset} on the same inputs, got one on others "
            f"({'; '.join(changes)}). Give --fresh to search in a new folder beside it, another --out, or put the old "
            "inputs back."
        )

    def build_final_configs(self, chosen: dict[str, Any]) -> list[RunConfig]:
        """Return the configurations of the runs that train with the chosen point and are tested."""
        [config] = [point.config for point in self.settings if point.key == chosen["key"]]
        return [
            replace(config, task={**config.task, "phase": "final", "seed": seed}, seed=seed)
            for seed in self.final_seeds
        ]


def build_study(
    method: str | None,
    dataset: str | None,
    seeds: Sequence[int] | None = None,
    *,
    task: str = "vtab",
    overrides: Sequence[Override] = (),
    **options: Any,
) -> Study:
    """Build the grid of a method on a dataset: the product of the lists under `search` in recipe, file and key=value.

    Besides those lists `search` may hold lr_base_batch_size (the batch size that the learning rates of the grid are
    for, from which they are scaled to the actual one), seed (of the search, default the first of the seeds) and seeds
    (of the final runs, where none are given).

    Args:
        seeds: of the final runs.
        **options: as `load_layered_config` takes them.

    Raises:
        ValueError: for a key that can't be searched, or one without values.
    """
    options = {"dataset": dataset, "task": task, **options}
    overrides = [*overrides, "task.phase=search"]
    space = load_layered_config(method, overrides=overrides, **options).values.get("search", {})
    flat = dict(iter_flat_settings(space))
    axes = _read_axes(flat)
    final_seeds = list(seeds or flat.get("seeds") or [1])
    seed = flat.get("seed", final_seeds[0])
    base_batch_size = flat.get("lr_base_batch_size")
    points: dict[str, GridPoint] = {}
    configs: dict[str, RunConfig] = {}
    for values in _iter_grid(axes):
        settings = [nest_setting(k, v) for k, v in values.items() if k not in VMAP_KEYS]
        structure = json.dumps(settings)
        if structure not in configs:
            layers = load_layered_config(method, seed=seed, overrides=[*overrides, *settings], **options)
            configs[structure] = resolve(layers)
        point = GridPoint(values, _set_rates(configs[structure], values, base_batch_size))
        point.config.validate()
        points.setdefault(point.key, point)
    grid = list(points.values())
    # the final seeds are no part of a search
    search_space = {k: v for k, v in flat.items() if k != "seeds"} | {"seed": seed}
    return Study(grid[0].config.task["dataset"], grid, search_space, final_seeds)


def _read_axes(space: Settings) -> dict[str, list[Any]]:
    """Return the lists of values to search, by their key."""
    axes = {k: v if isinstance(v, list) else [v] for k, v in space.items() if k not in SEARCH_OPTIONS}
    if unknown := [k for k in axes if k.partition(".")[0] not in ("train", "method") or "." not in k]:
        raise ValueError(
            f"search: expected train.NAME, method.NAME or {', '.join(SEARCH_OPTIONS)}, got search.{unknown[0]}. Write "
            "search.train.NAME or search.method.NAME and a list of values, such as search.train.lr=[0.1,0.01]."
        )
    if empty := [k for k, v in axes.items() if not v]:
        raise ValueError(
            f"search.{empty[0]}: expected a list of values, got an empty one. Add values, or leave it out."
        )
    for key in VMAP_KEYS:
        axes.setdefault(key, [None])
    return axes


def _iter_grid(axes: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for combination in product(*axes.values()):
        values = zip(axes, combination, strict=True)
        yield {k: v for k, v in values if v is not None or k not in VMAP_KEYS}


def _set_rates(config: RunConfig, values: dict[str, Any], base_batch_size: int | None) -> RunConfig:
    """Return a configuration with the learning rate and weight decay of a point."""
    rates = {k.partition(".")[2]: _parse_number(k, v) for k, v in values.items() if k in VMAP_KEYS}
    if base_batch_size and "lr" in rates:
        rates["lr"] = rates["lr"] * config.train["batch_size"] / base_batch_size
    return replace(config, train={**config.train, **rates})


def _parse_number(key: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError("a truth value")
        return float(value)  # YAML reads 1e-3 as text
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"search.{key}: expected a list of numbers, got {value!r}. Write search.{key}=[0.1,0.01]."
        ) from error


def run_search(
    study: Study, folder: SearchFolder, backbone: Backbone, save_every: float = 5.0, on_event: Listener = ignore_event
) -> dict[str, Any]:
    """Train all points and choose the one whose last epoch is best on the validation images.

    Of equally good ones it takes the smaller learning rate, then the smaller weight decay. A point whose loss is not a
    number is out. What is done in the folder is not done again.

    Args:
        study: the grid.
        folder: where the search is written.
        backbone: of the method.
        save_every: seconds between two saved states.
        on_event: hears of each step.

    Returns:
        The key, values and configuration of the chosen point, its accuracy, and counts of points.

    Raises:
        NonFiniteError: when the loss of every point is not a number.
    """
    if (chosen := folder.read_chosen()) is not None:
        return chosen
    with folder.open({**study.config, "inputs": study.inputs}):
        if len(study.settings) > 1:
            on_event(SearchStarted(study.dataset, len(study.settings)))
            _Search(study.task, folder, backbone, save_every, on_event).evaluate(study.settings)
        chosen = _choose(study, folder.read_entries())
        folder.finish(chosen)
    return chosen


def _choose(study: Study, entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the best point of a grid whose points are all done (a grid of one is not judged)."""
    points = study.settings
    finite = [p for p in points if len(points) == 1 or entries[p.key]["accuracy"] is not None]
    if not finite:
        raise NonFiniteError(
            f"search: expected a finite loss of at least one of {len(points)} settings on {study.dataset}, got none. "
            "Set smaller learning rates in search.train.lr."
        )

    def rank(point: GridPoint) -> tuple[float, float, float]:
        accuracy = entries[point.key]["accuracy"] if point.key in entries else 0.0
        return -accuracy, point.config.train["lr"], point.config.train["weight_decay"]

    best = min(finite, key=rank)
    return {
        "key": best.key,
        "values": best.values,
        "config": best.config.to_dict(),
        "n_settings": len(points),
        "accuracy": entries[best.key]["accuracy"] if entries else None,
        "non_finite": len(points) - len(finite),
        "tied": sum(rank(point)[0] == rank(best)[0] for point in finite) - 1,
        "seconds": sum(entry["seconds"] for entry in entries.values()),
    }


@dataclass
class _Search:
    task: Task
    folder: SearchFolder
    backbone: Backbone
    save_every: float
    on_event: Listener

    def evaluate(self, points: list[GridPoint]) -> None:
        """Train all points that are not done, as many in one vmapped pass as fit, and write their entries."""
        groups: dict[str, list[GridPoint]] = {}
        for point in points:
            groups.setdefault(point.vmap_group, []).append(point)
        [stage] = self.task.stages()
        for group in groups.values():
            n_vmapped = self._count_vmapped(group[0], stage)
            trains, size = n_vmapped > 0, n_vmapped or len(group)
            for chunk in (group[i : i + size] for i in range(0, len(group), size)):
                if not all(point.key in self.folder.read_entries() for point in chunk):
                    self._evaluate_chunk(chunk, stage, trains)

    def _count_vmapped(self, point: GridPoint, stage: Stage) -> int:
        """Return how many points of a group train at once; 0 for a method without training, whose points are equal."""
        method, train = build_method(point.config.method, self.backbone), point.config.train_config
        method.begin_lesson(stage.lesson, make_generator(point.config.seed, "begin", 0))
        has_training = any(p.requires_grad for p in method.parameters()) and train.epochs
        return count_vmapped_runs(method, train) if has_training else 0

    def _evaluate_chunk(self, points: list[GridPoint], stage: Stage, trains: bool) -> None:
        n_vmapped = len(points) if trains else 1
        if n_vmapped > 1:
            scores, seconds = self._train_vmapped(points, stage)
        else:
            score, seconds = self._train_single(points[0])
            scores = [score] * len(points)
        self.folder.add_entries(
            [
                {
                    "key": point.key,
                    "values": point.values,
                    "lr": point.config.train["lr"],
                    "weight_decay": point.config.train["weight_decay"],
                    "accuracy": score,
                    "seconds": seconds / len(points),
                    "vmapped": n_vmapped,
                }
                for point, score in zip(points, scores, strict=True)
            ]
        )
        shutil.rmtree(self.folder.current_run_path, ignore_errors=True)
        self.folder.vmap_state_path.unlink(missing_ok=True)

    def _train_vmapped(self, points: list[GridPoint], stage: Stage) -> tuple[list[float | None], float]:
        """Return the validation accuracy of each point, None for one that is not finite, and the seconds of all."""
        start, keys, seeds = time.monotonic(), [p.key for p in points], [p.config.seed for p in points]
        resume_state, previous_seconds = self.folder.load_vmap_state(keys)
        methods = [build_method(point.config.method, self.backbone) for point in points]
        for method, seed in zip(methods, seeds, strict=True):
            method.begin_lesson(stage.lesson, make_generator(seed, "begin", 0))
        last_saved, step = time.monotonic(), None
        with torch.random.fork_rng():
            configs = [point.config.train_config for point in points]
            for step in fit_vmapped(methods, stage.lesson, configs, seeds, resume_state):
                if time.monotonic() - last_saved >= self.save_every:
                    seconds = previous_seconds + time.monotonic() - start
                    self.folder.save_vmap_state(step.trainer.state(), keys, seconds)
                    last_saved = time.monotonic()
                self.on_event(VmapStepDone(len(points), step.step, step.total_steps))
            failed = step.trainer.failed if step is not None else resume_state.failed if resume_state else set()
            scores = list[float | None]()
            for i, method in enumerate(methods):
                method.end_lesson(stage.lesson)
                micro_batch_size, test = configs[i].micro_batch_size, stage.tests["val"]
                is_finite = i not in failed
                metrics = evaluate(method, test, micro_batch_size=micro_batch_size).metrics if is_finite else None
                scores.append(None if metrics is None else metrics["accuracy"])
        return scores, previous_seconds + time.monotonic() - start

    def _train_single(self, point: GridPoint) -> tuple[float | None, float]:
        """Return the validation accuracy of a point, None for one that is not finite, and its seconds."""
        start, config = time.monotonic(), point.config
        method, folder = build_method(config.method, self.backbone), self.folder.current_run_path / point.key
        try:
            result = run(method, self.task, config, folder, save_every=self.save_every, on_event=self.on_event)
        except NonFiniteError:
            return None, time.monotonic() - start
        return result.scores[-1]["val"]["accuracy"], result.cost["seconds"]
