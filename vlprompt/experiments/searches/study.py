"""What is searched: the settings of a method on a dataset, as a grid or as a space to sample from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from vlprompt.config.build import build_task
from vlprompt.config.resolve import load_layered_config
from vlprompt.config.run_config import RunConfig, hash_config
from vlprompt.config.sources import Override
from vlprompt.core.stage import Stage
from vlprompt.experiments.domain_pairs import expand_domain_pairs
from vlprompt.experiments.inputs import describe_inputs
from vlprompt.experiments.searches.points import PointBuilder, SearchPoint
from vlprompt.experiments.searches.space import VMAP_KEYS, Axis, flatten_space, read_axes
from vlprompt.results.comparability import CONTINUAL, DOMAIN
from vlprompt.results.run_inputs import ChangedInputsError, Inputs
from vlprompt.results.search_folder import SearchFolder
from vlprompt.tasks import Task

SAMPLERS = ("grid", "optuna")
VTAB = "vtab"
SEARCHED_TASKS = {  # task -> its settings in a search
    VTAB: [],
    CONTINUAL: ["task.search_lessons=3"],
    DOMAIN: ["task.setting=generalise", "task.criterion=training-domain"],
}


@dataclass(frozen=True)
class Study:
    """The search of a method's settings on a dataset.

    Args:
        dataset: its name.
        sampler: one of SAMPLERS.
        axes: lists of values, and ranges, by the key of their setting.
        settings: the points of a grid, each once; of a sampler's space two corners.
        builder: builds points.
        search_space: the `search` section that they come from.
        final_seeds: of the runs with the chosen point.
    """

    dataset: str
    sampler: str
    axes: dict[str, Axis]
    settings: list[SearchPoint]
    builder: PointBuilder
    search_space: dict[str, Any]
    final_seeds: list[int]

    @property
    def config(self) -> dict[str, Any]:
        sampler = {} if self.sampler == "grid" else {"sampler": self.sampler}
        return {**self.settings[0].config.to_dict(), "search": self.search_space, **sampler}

    @cached_property
    def task(self) -> Task:
        """What all points are trained and judged on."""
        return build_task(self.settings[0].config.task)

    @cached_property
    def inputs(self) -> Inputs:
        """The data and files that points are trained on and judged by."""
        return describe_inputs(self.task, self.settings[0].config)

    @property
    def has_several_lessons(self) -> bool:
        """Whether a point may be trained on several lessons: those of a stream, or the sources but one in turn."""
        return self.settings[0].config.task["name"] in (CONTINUAL, DOMAIN)

    @property
    def stage(self) -> Stage:
        """The first stage of the search, which has validation images to judge by and no other test."""
        stage = next(iter(self.task.stages()))
        if set(stage.tests) != {"val"} or stage.initial_tests or stage.future_tests:
            raise ValueError(
                f"task: expected validation images as the only test of a search, got {', '.join(stage.tests)}. Leave "
                "task.phase out."
            )
        return stage

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
        config = self.builder.build(chosen["values"]).config
        return [
            replace(config, task={**config.task, "phase": "final", "seed": seed}, seed=seed)
            for seed in self.final_seeds
        ]


def build_study(
    method: str | None,
    dataset: str | None,
    seeds: Sequence[int] | None = None,
    *,
    sampler: str = "grid",
    task: str = "vtab",
    overrides: Sequence[Override] = (),
    **options: Any,
) -> Study:
    """Build the search of a method on a dataset from the lists and ranges under `search` in recipe, file and key=value.

    Besides those `search` may hold lr_base_batch_size (the batch size that the learning rates are for, from which they
    are scaled to the actual one), seed (of the search, default the first of the seeds) and seeds (of the final runs,
    where none are given).

    Args:
        seeds: of the final runs.
        task: "vtab"; "continual" for a stream, searched on the validation images of its first lessons; "domain" for
            generalisation to one target, searched by task.criterion.
        sampler: "grid" tries the product of all lists; "optuna" proposes values of lists and ranges.
        **options: as `load_layered_config` takes them.

    Raises:
        ValueError: for a key that can't be searched, one without values, or a range in a grid.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"--sampler: expected {' or '.join(SAMPLERS)}, got {sampler}. Set --sampler optuna.")
    if task not in SEARCHED_TASKS:
        raise ValueError(
            f"--task: expected one of {', '.join(SEARCHED_TASKS)}, got {task}, which has no test on validation images. "
            "Set one of these, or give `vlprompt sweep` a dataset whose test split is your validation images."
        )
    if task != VTAB and sampler != "grid":
        raise ValueError(
            f"--sampler: expected grid for the task {task}, got {sampler}, which stops trials after epochs of one "
            "lesson. Leave --sampler out."
        )
    options = {"dataset": dataset, "task": task, **options}
    overrides = [*SEARCHED_TASKS[task], *overrides, "task.phase=search"]
    layers = load_layered_config(method, overrides=overrides, **options).values
    flat = dict(flatten_space(layers.get("search", {})))
    axes = read_axes(flat, layers["method"].get("name", ""), has_ranges=sampler != "grid")
    final_seeds = list(seeds or flat.get("seeds") or [1])
    seed = flat.get("seed", final_seeds[0])
    builder = PointBuilder(method, seed, overrides, options, flat.get("lr_base_batch_size"))
    if sampler == "grid":
        points: dict[str, SearchPoint] = {}
        for values in _iter_grid(axes):
            point = builder.build(values)
            points.setdefault(point.key, point)
        settings = list(points.values())
    else:
        settings = [builder.build(values) for values in _list_corners(axes)]
    # the final seeds are no part of a search
    search_space = {k: v for k, v in flat.items() if k != "seeds"} | {"seed": seed}
    return Study(settings[0].config.task["dataset"], sampler, axes, settings, builder, search_space, final_seeds)


def build_studies(method: str | None, dataset: str | None, *, task: str = "vtab", **options: Any) -> list[Study]:
    """Build the searches of a method on a dataset: of domains one for each target, else one.

    Arguments as those of `build_study`. Of domains, `task.target` names the target, or several with commas; without it
    each domain is the target in turn.
    """
    if task != DOMAIN:
        return [build_study(method, dataset, task=task, **options)]
    overrides = [*SEARCHED_TASKS[task], *options.pop("overrides", ())]
    known = {name: options[name] for name in ("backbone", "config_file") if name in options}
    layers = load_layered_config(method, dataset=dataset, task=task, overrides=overrides, **known)
    pairs = expand_domain_pairs(layers.values["task"])
    return [build_study(method, dataset, task=task, overrides=[*overrides, *pair], **options) for pair in pairs]


def _iter_grid(axes: dict[str, Axis]) -> Iterator[dict[str, Any]]:
    lists = {key: axis for key, axis in axes.items() if isinstance(axis, list)}
    lists |= {key: [None] for key in VMAP_KEYS if key not in lists}
    for combination in product(*lists.values()):
        values = zip(lists, combination, strict=True)
        yield {k: v for k, v in values if v is not None or k not in VMAP_KEYS}


def _list_corners(axes: dict[str, Axis]) -> list[dict[str, Any]]:
    """Return the points at the low and at the high ends, so that values that a setting can't have are refused early."""
    ends = {
        key: (axis[0], axis[-1])
        if isinstance(axis, list)
        else tuple(int(n) if axis.is_integer else n for n in (axis.low, axis.high))
        for key, axis in axes.items()
    }
    return [{key: values[index] for key, values in ends.items()} for index in (0, 1)]
