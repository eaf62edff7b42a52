"""Train every point of a grid and choose the best on validation images."""

import shutil
import time
from dataclasses import dataclass
from typing import Any

import torch

from vlprompt.core.method import Method
from vlprompt.core.stage import Stage
from vlprompt.core.towers import Backbone
from vlprompt.engine.evaluate import evaluate
from vlprompt.engine.vmap_training import count_vmapped_runs, fit_vmapped
from vlprompt.experiments.events import Listener, SearchStarted, VmapStepDone, ignore_event
from vlprompt.experiments.learned.prompt import build_run_method
from vlprompt.experiments.runner import run
from vlprompt.experiments.searches.points import SearchPoint
from vlprompt.experiments.searches.study import Study
from vlprompt.results.search_folder import SearchFolder
from vlprompt.runtime.errors import NonFiniteError
from vlprompt.runtime.seeding import make_generator


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
            _Search(study, folder, backbone, save_every, on_event).evaluate(study.settings)
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

    def rank(point: SearchPoint) -> tuple[float, float, float]:
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
    study: Study
    folder: SearchFolder
    backbone: Backbone
    save_every: float
    on_event: Listener

    def evaluate(self, points: list[SearchPoint]) -> None:
        """Train all points that are not done, as many in one vmapped pass as fit, and write their entries."""
        groups: dict[str, list[SearchPoint]] = {}
        for point in points:
            groups.setdefault(point.vmap_group, []).append(point)
        stage = self.study.stage
        for group in groups.values():
            n_vmapped = 1 if self.study.has_several_lessons else self._count_vmapped(group[0], stage)
            trains, size = n_vmapped > 0, n_vmapped or len(group)
            for chunk in (group[i : i + size] for i in range(0, len(group), size)):
                if not all(point.key in self.folder.read_entries() for point in chunk):
                    self._evaluate_chunk(chunk, stage, trains)

    def _count_vmapped(self, point: SearchPoint, stage: Stage) -> int:
        """Return how many points of a group train at once; 0 for a method without training, whose points are equal."""
        method, train = build_run_method(point.config.method, self.backbone), point.config.train_config
        method.begin_lesson(stage.lesson, make_generator(point.config.seed, "begin", 0))
        has_training = any(p.requires_grad for p in method.parameters()) and train.epochs
        return count_vmapped_runs(method, train) if has_training else 0

    def _evaluate_chunk(self, points: list[SearchPoint], stage: Stage, trains: bool) -> None:
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

    def _train_vmapped(self, points: list[SearchPoint], stage: Stage) -> tuple[list[float | None], float]:
        """Return the validation accuracy of each point, None for one that is not finite, and the seconds of all."""
        start, keys, seeds = time.monotonic(), [p.key for p in points], [p.config.seed for p in points]
        resume_state, previous_seconds = self.folder.load_vmap_state(keys)
        methods = [build_run_method(point.config.method, self.backbone) for point in points]
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
                scores.append(None if i in failed else _measure_accuracy(method, stage, configs[i].micro_batch_size))
        return scores, previous_seconds + time.monotonic() - start

    def _train_single(self, point: SearchPoint) -> tuple[float | None, float]:
        """Return the validation accuracy of a point, None for one that is not finite, and its seconds."""
        start, config = time.monotonic(), point.config
        method, folder = build_run_method(config.method, self.backbone), self.folder.current_run_path / point.key
        try:
            result = run(method, self.study.task, config, folder, save_every=self.save_every, on_event=self.on_event)
        except NonFiniteError:
            return None, time.monotonic() - start
        return result.summary["accuracy"], result.cost["seconds"]


def _measure_accuracy(method: Method, stage: Stage, micro_batch_size: int | None) -> float | None:
    """Return the validation accuracy; None where the last step, whose loss was finite, left weights that are not."""
    try:
        return evaluate(method, stage.tests["val"], micro_batch_size=micro_batch_size).metrics["accuracy"]
    except NonFiniteError:
        return None
