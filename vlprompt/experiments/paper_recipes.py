"""Pair our results with published ones, and judge our settings by the recipes of the papers."""

import json
from collections.abc import Sequence
from typing import Any

from vlprompt.results.published.aggregate import AggregatedResult
from vlprompt.results.published.compare import Comparison, compare_results
from vlprompt.results.published.entries import PublishedResult, Reference
from vlprompt.results.published.reference import read_reference
from vlprompt.results.run_folder import Result


def load_reference() -> Reference:
    """Return the published numbers that come with the package."""
    from vlprompt.runtime.paths import find_configs_folder

    return read_reference(find_configs_folder() / "reference")


def compare_with_published(results: Sequence[Result]) -> tuple[list[Comparison], list[AggregatedResult]]:
    """Return pairs of our results and published ones, and our results without a counterpart."""
    configs: dict[str, dict[str, Any] | str] = {}

    def resolve_once(ours: AggregatedResult, theirs: PublishedResult) -> dict[str, Any] | str:
        key = json.dumps(
            [ours.key, ours.dataset, ours.config["task"].get("targets"), theirs.backbone, theirs.arguments]
        )
        if key not in configs:
            configs[key] = resolve_paper_config(ours, theirs)
        return configs[key]

    return compare_results(results, load_reference(), resolve_once)


def resolve_paper_config(ours: AggregatedResult, theirs: PublishedResult) -> dict[str, Any] | str:
    """Return the configuration of configs/<task>/<method>.yaml for a published result on our dataset, or why not."""
    from vlprompt.config.resolve import find_recipes, resolve_grid
    from vlprompt.config.sources import nest_setting

    task, method, shots, _ = ours.key
    backbone = theirs.backbone if ":" in theirs.backbone else f"open_clip:{theirs.backbone}"
    if ours.trained_parameters and not find_recipes(task, method, backbone):
        return f"no recipe of the paper in configs/{task}/{method}.yaml to compare the settings with"
    settings = [nest_setting(f"method.{key}", value) for key, value in theirs.arguments.items()]
    if targets := ours.config["task"].get("targets"):
        settings.append(nest_setting("task.targets", targets))
    try:
        [config] = resolve_grid(
            [method], [shots], [None], dataset=ours.dataset, task=task, backbone=backbone, overrides=settings
        )
    except ValueError as error:
        return f"the paper's recipe does not reach here: {error}"
    return config.to_dict()
