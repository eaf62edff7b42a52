"""Resolve the combinations of methods, shots, seeds and domains that one command names."""

from collections.abc import Sequence
from typing import Any

from vlprompt.config.resolve import load_layered_config, resolve_grid
from vlprompt.config.run_config import RunConfig
from vlprompt.experiments.domain_pairs import expand_domain_pairs
from vlprompt.results.comparability import DOMAIN


def resolve_sweep(
    methods: Sequence[str | None],
    shots: Sequence[int | None],
    seeds: Sequence[int | None],
    *,
    source: str | None = None,
    target: str | None = None,
    task: str | None = None,
    **options: Any,
) -> list[RunConfig]:
    """Resolve all combinations of methods, shots, seeds and pairs of domains.

    Args:
        methods: None for the one that a file of settings names.
        source: of domains: one, several with commas, "rest" or "none"; None for each in turn.
        target: of domains: one, or several in turn with commas; None for each in turn.
        task: its name; None for the one of a file, or that suits the methods.
        **options: dataset, backbone, config_file and overrides, as `load_layered_config` takes them.

    Raises:
        ValueError: for settings that can't be resolved, or domains with another task.
    """
    if source is not None or target is not None:
        if task not in (None, DOMAIN):
            raise ValueError(
                f"--source, --target: expected the task {DOMAIN}, got {task}. Leave them out, or set --task {DOMAIN}."
            )
        task = DOMAIN
    tasks = [load_layered_config(method, task=task, **options).values["task"] for method in methods]
    kinds = {settings["name"] for settings in tasks}
    if len(kinds) > 1 and DOMAIN in kinds:  # no task was named, and one of the methods allows only this one
        task = DOMAIN
        tasks = [load_layered_config(method, task=task, **options).values["task"] for method in methods]
    overrides = options.pop("overrides", ())
    configs = list[RunConfig]()
    for method, settings in zip(methods, tasks, strict=True):
        is_domain = settings["name"] == DOMAIN
        for pair in expand_domain_pairs(settings, source, target) if is_domain else [[]]:
            name = DOMAIN if is_domain else task
            configs += resolve_grid([method], shots, seeds, task=name, overrides=[*overrides, *pair], **options)
    return configs
