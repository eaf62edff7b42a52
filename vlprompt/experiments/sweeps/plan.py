"""What a sweep would run, before it does: how many runs, how far they are, hours, memory and disk."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vlprompt.backbones.missing_weights import describe_missing_weights
from vlprompt.config.run_config import RunConfig
from vlprompt.config.sources import PlainValue, iter_flat_settings
from vlprompt.experiments.planning.cost_model import (
    DatasetSize,
    MeasuredCosts,
    compute_workload,
    find_dataset_size,
    has_trainable_parameters,
    measure_costs,
)
from vlprompt.experiments.sweeps.run_names import format_dataset_name, get_run_folder
from vlprompt.experiments.sweeps.stored_runs import StoredRun
from vlprompt.results.comparability import make_group_key
from vlprompt.results.run_folder import Result

if TYPE_CHECKING:
    from vlprompt.core.towers import Backbone

SEEDS = ("seed", "task.seed")
MEASURED_TASKS = ("few_shot", "base_to_new", "transfer")  # whose costs follow from a step and a test


@dataclass
class PlanGroup:
    """The runs that differ by their seed alone.

    Args:
        dataset: its name.
        method: its name.
        shots: per class; None for all, or a stream.
        n_runs: in all.
        n_done: finished.
        n_begun: with a saved state.
        n_changed: whose folder holds a run on other data, files or weights.
        settings: those in which it differs from other groups of its dataset, method and shots.
        seconds: of one run; None where not known.
        peak_mb: memory of one run likewise.
        disk_bytes: of the folder of one run likewise.
        is_measured: whether seconds are of finished runs, not of a measured step.
    """

    dataset: str
    method: str
    shots: int | None
    n_runs: int = 0
    n_done: int = 0
    n_begun: int = 0
    n_changed: int = 0
    settings: dict[str, PlainValue] = field(default_factory=dict)
    seconds: float | None = None
    peak_mb: float | None = None
    disk_bytes: float | None = None
    is_measured: bool = False

    @property
    def n_left(self) -> int:
        return self.n_runs - self.n_done


@dataclass
class SweepPlan:
    """The groups of a sweep, and what should be known of its runs.

    Args:
        groups: of runs.
        changed: why runs can't go on in their folders.
        missing: weights that are not on this machine.
    """

    groups: list[PlanGroup] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def sum_left(self, value: Callable[[PlanGroup], float | None]) -> tuple[float, int]:
        """Return the sum of a cost over the runs that are left, and how many of them it does not know."""
        known = [(value(group), group.n_left) for group in self.groups if group.n_left]
        return sum(v * n for v, n in known if v is not None), sum(n for v, n in known if v is None)


def plan_sweep(
    configs: Sequence[RunConfig],
    stored: Sequence[StoredRun],
    runs_folder: Path,
    load_backbone: "Callable[[RunConfig], Backbone] | None" = None,
) -> SweepPlan:
    """Plan the runs of a sweep; costs come from finished runs, else from a step that is measured here.

    Args:
        configs: of the runs.
        stored: what is there of each.
        runs_folder: where they are.
        load_backbone: loads the backbone of a run to measure a step on it; None to measure nothing.
    """
    plan, sizes = SweepPlan(), dict[str, DatasetSize]()
    if load_backbone is not None:
        names = dict.fromkeys(name for config in configs for name in _list_datasets(config))
        sizes = {name: find_dataset_size(name) for name in names}
    members: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        members.setdefault(make_group_key(config.to_dict()), []).append(index)
    prices: dict[str, MeasuredCosts] = {}
    for indices in members.values():
        config = configs[indices[0]]
        group = PlanGroup(format_dataset_name(config.task), config.method["name"], config.task.get("shots"))
        finished = [result for i in indices if (result := stored[i].result) is not None]
        group.n_runs, group.n_done = len(indices), len(finished)
        left = [i for i in indices if stored[i].result is None and not stored[i].has_changed_inputs]
        group.n_begun = sum(get_run_folder(runs_folder, configs[i]).state_path.exists() for i in left)
        group.n_changed = sum(stored[i].has_changed_inputs for i in indices)
        if finished:
            _take_costs(group, finished)
        elif load_backbone is not None and config.task["name"] in MEASURED_TASKS:
            _measure_costs(group, config, sizes, load_backbone(config), prices)
        plan.groups.append(group)
    _name_differences(plan.groups, [configs[indices[0]] for indices in members.values()])
    plan.changed = list(dict.fromkeys(str(run.error) for run in stored if run.has_changed_inputs))
    plan.missing = [
        f"{name}: its weights are not on this machine, and the first run loads them from {source}"
        for name in dict.fromkeys(config.backbone for config in configs)
        if (source := describe_missing_weights(name))
    ]
    return plan


def _name_differences(groups: Sequence[PlanGroup], configs: Sequence[RunConfig]) -> None:
    """Set the settings by which groups of one dataset, method and number of shots differ."""
    alike: dict[tuple[str, str, int | None], list[int]] = {}
    for index, group in enumerate(groups):
        alike.setdefault((group.dataset, group.method, group.shots), []).append(index)
    for indices in alike.values():
        settings = [dict(iter_flat_settings(configs[i].to_dict())) for i in indices] if len(indices) > 1 else []
        keys = [key for key in dict.fromkeys(key for one in settings for key in one) if key not in SEEDS]
        differing = [key for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1]
        for index, one in zip(indices, settings, strict=bool(settings)):
            groups[index].settings = {key: one[key] for key in differing if key in one}


def _list_datasets(config: RunConfig) -> list[str]:
    """List the image datasets of a run that are named by their cards or folders."""
    if config.task["name"] not in MEASURED_TASKS:
        return []
    return [config.task["dataset"], *(config.task.get("targets") or ())]


def _take_costs(group: PlanGroup, finished: Sequence[Result]) -> None:
    """Take the mean costs of finished runs."""
    group.is_measured = True
    group.seconds = sum(result.cost["seconds"] for result in finished) / len(finished)
    group.peak_mb = max(result.cost["peak_memory_mb"] for result in finished)
    with suppress(OSError):
        sizes = [sum(f.stat().st_size for f in Path(r.folder or "").rglob("*") if f.is_file()) for r in finished]
        group.disk_bytes = sum(sizes) / len(sizes)


def _measure_costs(
    group: PlanGroup,
    config: RunConfig,
    sizes: dict[str, DatasetSize],
    backbone: "Backbone",
    prices: dict[str, MeasuredCosts],
) -> None:
    """Measure a step and a test of a method on its backbone, once for all datasets and shots."""
    if any(not sizes[name].classes for name in _list_datasets(config)):
        return
    key = json.dumps([config.backbone, config.preprocess, config.method, config.train["batch_size"]])
    if key not in prices:
        prices[key] = measure_costs(config, backbone)
    workload = compute_workload(config, sizes, has_trainable_parameters(config.method, backbone))
    group.seconds = prices[key].estimate_seconds(workload)
    group.peak_mb = prices[key].estimate_megabytes(workload)
