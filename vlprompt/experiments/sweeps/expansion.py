"""From the values of a sweep to the configurations of its runs, and what of them is impossible."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlprompt.backbones.missing_weights import describe_missing_weights
from vlprompt.backbones.schemes import SINGLE_THREADED_BACKBONES
from vlprompt.config.build import build_task, resolve_class
from vlprompt.config.run_config import RunConfig
from vlprompt.config.sources import COMMAND_LINE, Override, PlainValue, nest_setting
from vlprompt.core.towers import validate_stage_inputs
from vlprompt.engine.unseen_classes import require_test_classes
from vlprompt.experiments.learned.prompt import build_run_method
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import LoadedBackbones
from vlprompt.experiments.sweeps.run_names import format_run_name
from vlprompt.experiments.sweeps.sweep_file import NUMBERS, OPTIONS, Combination, SweepSpace, TypedText
from vlprompt.results.comparability import make_group_key
from vlprompt.runtime.errors import describe_error
from vlprompt.runtime.seeding import make_generator

if TYPE_CHECKING:
    from vlprompt.core.stage import Stage


@dataclass(frozen=True)
class ImpossibleRun:
    """What can't be run.

    Args:
        name: of the run, or of the settings that can't be resolved.
        reason: why.
        n_runs: that have these settings.
    """

    name: str
    reason: str
    n_runs: int = 1


@dataclass
class Expansion:
    """The runs of a sweep.

    Args:
        configs: of the runs, each once.
        impossible: what can't be run, by its settings.
        notices: what a user should know of the combinations.
    """

    configs: list[RunConfig] = field(default_factory=list)
    impossible: dict[str, ImpossibleRun] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def expand(space: SweepSpace) -> Expansion:
    """Resolve every combination; those whose settings contradict each other are collected, not raised."""
    expansion, n_resolved = Expansion(), 0
    unique: dict[str, RunConfig] = {}
    for combination, seeds in _group_by_seed(space):
        try:
            configs = _resolve(space, {**space.settings, **combination}, seeds)
        except (ValueError, OSError) as error:
            name = _format_settings(combination)
            expansion.impossible[name] = ImpossibleRun(name, str(error), len(seeds))
            continue
        n_resolved += len(configs)
        unique |= {config.hash: config for config in configs}
    expansion.configs = list(unique.values())
    if n_repeated := n_resolved - len(unique):
        expansion.notices.append(f"{n_repeated} combinations name a run of another one; each is made once")
    for pattern in space.find_idle_exclusions():
        text = _format_settings(pattern)
        expansion.notices.append(f"{space.file}: exclude: {text} leaves nothing out, as no combination has all of it")
    return expansion


def list_reasons(impossible: Mapping[str, ImpossibleRun]) -> list[str]:
    """Return a line for each reason, with the first run that it holds for and the number of the others."""
    by_reason: dict[str, list[ImpossibleRun]] = {}
    for run in impossible.values():
        by_reason.setdefault(run.reason, []).append(run)
    lines = list[str]()
    for reason, runs in by_reason.items():
        n_others = sum(run.n_runs for run in runs) - 1
        lines.append(f"{runs[0].name}{f' and {n_others:,} more' if n_others else ''}: {reason}")
    return lines


def _group_by_seed(space: SweepSpace) -> "list[tuple[Combination, list[Any]]]":
    """Return the combinations without their seeds, and the seeds of each: they resolve alike."""
    groups: dict[str, tuple[Combination, list[Any]]] = {}
    for combination in space.iter_combinations():
        rest = {key: value for key, value in combination.items() if key != "seed"}
        seed = combination.get("seed", space.settings.get("seed"))
        groups.setdefault(json.dumps(rest, sort_keys=True), (rest, []))[1].append(seed)
    return list(groups.values())


def _resolve(space: SweepSpace, combination: Combination, seeds: Sequence[Any]) -> list[RunConfig]:
    for key, values in (("shots", [combination.get("shots")]), ("seed", seeds)):
        if wrong := [value for value in values if value is not None and type(value) is not int]:
            hint = ", or null for all" if key == "shots" else ""
            raise ValueError(f"{key}: expected whole numbers, got {wrong[0]!r}. Write {key}=1,2,4{hint}.")
    for key in ("method", "task"):
        _require_class(key, combination.get(key), space.find_origin(key))
    texts = {key: combination.get(key) for key in OPTIONS if key not in NUMBERS}
    shots: Any = combination.get("shots")
    overrides = [_build_override(space, k, v) for k, v in combination.items() if k not in OPTIONS]
    if "shots" in combination and shots is None:  # all of them, where no value would be the task's default
        overrides.append(nest_setting("task.shots", None))
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
        origin=space.find_origin("shots") or COMMAND_LINE,
    )


def _require_class(kind: str, name: str | None, origin: str) -> None:
    """ValueError for a method or task that there is not, with the place of its name in a file."""
    try:
        if name is not None:
            resolve_class(kind, name)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}" if origin else str(error)) from error


def _build_override(space: SweepSpace, key: str, value: PlainValue) -> Override:
    if isinstance(value, TypedText):
        return f"{key}={value}"
    return nest_setting(key, value), space.find_origin(key) or COMMAND_LINE


def _format_settings(settings: Combination) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


def find_impossible_runs(configs: Sequence[RunConfig], backbones: LoadedBackbones) -> dict[str, ImpossibleRun]:
    """Return the runs that can't be made by their hashes, as far as it is seen before anything runs.

    Data are opened, and methods are begun on an embedded backbone, once for all seeds; other backbones are loaded by
    the runs alone.
    """
    reasons: dict[str, str] = {}
    impossible: dict[str, ImpossibleRun] = {}
    for config in configs:
        key = make_group_key(config.to_dict(), ["train", "preprocess"])
        if key not in reasons:
            reasons[key] = _explain(config, backbones)
        if reasons[key]:
            impossible[config.hash] = ImpossibleRun(format_run_name(config), reasons[key])
    return impossible


def _explain(config: RunConfig, backbones: LoadedBackbones) -> str:
    """Return why a run can't be made; "" where nothing speaks against it."""
    try:
        describe_missing_weights(config.backbone)  # or raise, where there are none
        task = build_task(config.task)
        stage: Stage = next(iter(task.stages()))
        if config.backbone in SINGLE_THREADED_BACKBONES:
            backbone = backbones.load(config)
            validate_stage_inputs(backbone, stage)
            method = build_run_method(config.method, backbone)
            require_test_classes(method, stage, getattr(task, "seen_classes_hint", ""))
            method.begin_lesson(stage.lesson.without_items(), make_generator(config.seed, "begin", 0))
    except Exception as error:  # of a user's own method or task, of any kind
        return describe_error(error)
    return ""
