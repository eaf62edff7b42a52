"""From the values of a sweep to the configurations of its runs, and what of them is impossible."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlprompt.backbones.schemes import SINGLE_THREADED_BACKBONES
from vlprompt.config.build import build_method, build_task
from vlprompt.config.run_config import RunConfig
from vlprompt.config.sources import Override, nest_setting
from vlprompt.core.towers import validate_stage_inputs
from vlprompt.engine.unseen_classes import require_test_classes
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import LoadedBackbones
from vlprompt.experiments.sweeps.run_names import format_run_name
from vlprompt.experiments.sweeps.sweep_file import OPTIONS, Combination, SweepSpace
from vlprompt.runtime.seeding import make_generator

if TYPE_CHECKING:
    from vlprompt.core.stage import Stage


@dataclass
class Expansion:
    """The runs of a sweep.

    Args:
        configs: of the runs, each once.
        impossible: what can't be run -> why.
        n_repeated: combinations that come to a run which another one names already.
    """

    configs: list[RunConfig] = field(default_factory=list)
    impossible: dict[str, str] = field(default_factory=dict)
    n_repeated: int = 0


def expand(space: SweepSpace) -> Expansion:
    """Resolve every combination; those whose settings contradict each other are collected, not raised."""
    expansion, n_resolved = Expansion(), 0
    unique: dict[str, RunConfig] = {}
    for combination, seeds in _group_by_seed(space):
        try:
            configs = _resolve({**space.settings, **combination}, seeds)
        except (ValueError, OSError) as error:
            expansion.impossible[_format_combination(combination)] = str(error)
            continue
        n_resolved += len(configs)
        unique |= {config.hash: config for config in configs}
    expansion.configs = list(unique.values())
    expansion.n_repeated = n_resolved - len(unique)
    return expansion


def _group_by_seed(space: SweepSpace) -> "list[tuple[Combination, list[Any]]]":
    """Return the combinations without their seeds, and the seeds of each: they resolve alike."""
    groups: dict[str, tuple[Combination, list[Any]]] = {}
    for combination in space.iter_combinations():
        rest = {key: value for key, value in combination.items() if key != "seed"}
        seed = combination.get("seed", space.settings.get("seed"))
        groups.setdefault(json.dumps(rest, sort_keys=True), (rest, []))[1].append(seed)
    return list(groups.values())


def _resolve(combination: Combination, seeds: Sequence[Any]) -> list[RunConfig]:
    for key, values in (("shots", [combination.get("shots")]), ("seed", seeds)):
        if wrong := [value for value in values if value is not None and type(value) is not int]:
            raise ValueError(f"{key}: expected whole numbers, got {wrong[0]!r}. Write {key}=1,2,4.")
    texts = {key: None if (value := combination.get(key)) is None else str(value) for key in OPTIONS}
    overrides: list[Override] = [nest_setting(k, v) for k, v in combination.items() if k not in OPTIONS]
    shots: Any = combination.get("shots")
    return resolve_sweep(
        [texts["method"]],
        [shots],
        list(seeds),
        source=texts["source"],
        target=texts["target"],
        task=texts["task"],
        dataset=texts["dataset"],
        backbone=texts["backbone"],
        overrides=overrides,
    )


def _format_combination(combination: Combination) -> str:
    return " ".join(f"{key}={value}" for key, value in combination.items())


def find_impossible_runs(configs: Sequence[RunConfig], backbones: LoadedBackbones) -> dict[str, str]:
    """Return the hash of each run that can't be made -> why, as far as it is seen before anything runs.

    Data are opened, and methods are begun on an embedded backbone, once for all seeds; other backbones are loaded by
    the runs alone.
    """
    reasons: dict[str, str] = {}
    impossible: dict[str, str] = {}
    for config in configs:
        key = json.dumps([config.backbone, config.method, {k: v for k, v in config.task.items() if k != "seed"}])
        if key not in reasons:
            reasons[key] = _explain(config, backbones)
        if reasons[key]:
            impossible[config.hash] = f"{format_run_name(config)}: {reasons[key]}"
    return impossible


def _explain(config: RunConfig, backbones: LoadedBackbones) -> str:
    """Return why a run can't be made; "" where nothing speaks against it."""
    try:
        task = build_task(config.task)
        stage: Stage = next(iter(task.stages()))
        if config.backbone in SINGLE_THREADED_BACKBONES:
            backbone = backbones.load(config)
            validate_stage_inputs(backbone, stage)
            method = build_method(config.method, backbone)
            require_test_classes(method, stage, getattr(task, "seen_classes_hint", ""))
            method.begin_lesson(stage.lesson.without_items(), make_generator(config.seed, "begin", 0))
    except (ValueError, OSError) as error:
        return str(error)
    return ""
