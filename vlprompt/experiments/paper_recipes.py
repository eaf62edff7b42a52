"""Our results against the published ones: on the terminal, as Markdown, CSV and JSON."""

import json
from collections.abc import Sequence
from typing import Any

from vlprompt.results.published.aggregate import Ours
from vlprompt.results.published.compare import Pair, compare
from vlprompt.results.published.entries import Published, Reference
from vlprompt.results.published.reference import read_reference
from vlprompt.results.run_folder import Result


def reference() -> Reference:
    """The published numbers that come with the package."""
    from vlprompt.runtime.paths import configs_folder

    return read_reference(configs_folder() / "reference")


def paired(results: Sequence[Result]) -> tuple[list[Pair], list[Ours]]:
    """Pairs of ours and theirs, and ours that have no counterpart."""
    known: dict[str, dict[str, Any] | str] = {}

    def once(ours: Ours, theirs: Published) -> dict[str, Any] | str:
        key = json.dumps(
            [ours.key, ours.dataset, ours.config["task"].get("targets"), theirs.backbone, theirs.arguments]
        )
        if key not in known:
            known[key] = paper(ours, theirs)
        return known[key]

    return compare(results, reference(), once)


def paper(ours: Ours, theirs: Published) -> dict[str, Any] | str:
    """The configuration that configs/<task>/<method>.yaml comes to for theirs on our dataset, or why there is none."""
    from vlprompt.config.resolve import grid, recipes

    task, method, shots, _ = ours.key
    backbone = theirs.backbone if ":" in theirs.backbone else f"open_clip:{theirs.backbone}"
    if ours.trained and not recipes(task, method, backbone):
        return f"no recipe of the paper in configs/{task}/{method}.yaml to compare the settings with"
    settings = [f"method.{key}={json.dumps(value)}" for key, value in theirs.arguments.items()]
    if targets := ours.config["task"].get("targets"):
        settings.append(f"task.targets={json.dumps(targets)}")
    try:
        return grid([method], [shots], [None], dataset=ours.dataset, task=task, backbone=backbone, overrides=settings)[
            0
        ]
    except ValueError as error:
        return f"the paper's recipe does not reach here: {error}"
