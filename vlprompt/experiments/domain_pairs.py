"""From which domains to which: one command may mean many pairs."""

import json
from collections.abc import Sequence
from typing import Any

from vlprompt.results.comparability import DOMAIN


def ways_of(
    source: str | None, target: str | None, method: str | None, settings: Sequence[str], how: dict[str, Any]
) -> list[dict[str, Any]]:
    """The arguments of `config.grid` for each pair of domains that was asked for; one for any other task.

    source: one domain, several at once with commas, "rest", or "none" for a target alone; None: each in turn. target:
    several with commas are taken in turn; None: each in turn. ValueError for --source or --target with another task,
    and where every domain is a source.
    """
    from vlprompt.config.resolve import layered

    if source is not None or target is not None:
        if how["task"] not in (None, DOMAIN):
            raise ValueError(f"--source and --target are of the task {DOMAIN}, not of {how['task']}; leave them out")
        how = how | {"task": DOMAIN}
    task = layered(method, **how, overrides=settings).values["task"]
    if task["name"] != DOMAIN:
        return [how | {"overrides": settings}]
    how = how | {"task": DOMAIN}
    sources, targets = _named(task.get("source") if source is None else source), _named(target or task.get("target"))
    if not all(isinstance(one, str) for one in (*sources, *targets)):
        return [how | {"overrides": settings}]  # what is wrong is told where settings are read
    found = []
    for one, other in _pairs(task, sources, targets):
        options = [f"task.source={json.dumps(one, ensure_ascii=False)}"] if one or sources else []
        options += [f"task.target={json.dumps(other, ensure_ascii=False)}"] if other else []
        found.append(how | {"overrides": [*settings, *options]})
    return found


def _named(told: Any) -> list[Any]:
    """Names as they are told: one, several with commas or as a list."""
    if isinstance(told, str):
        return [name.strip() for name in told.split(",")]
    return told if isinstance(told, list) else [] if told is None else [told]


def _pairs(task: dict[str, Any], sources: list[str], targets: list[str]) -> list[tuple[Any, str | None]]:
    """(source, target) of each run; all ordered pairs of the dataset's domains where neither is named."""
    asked = None if sources in ([], ["none"]) else sources[0] if len(sources) == 1 else sources
    if task.get("dataset") is None or (targets and sources):
        return [(asked, one) for one in targets or [None]]
    from vlprompt.data.loading import open_data
    from vlprompt.data.splits.domains import domains_in, pairs_in

    data = open_data(task["dataset"], skip_broken=bool(task.get("skip_broken", False)))
    every = domains_in(data)
    if len(every) < 2:
        return [(asked, targets[0] if targets else None)]  # the task says what is wrong
    if sources == ["none"]:
        return [(None, one) for one in every]
    if not sources and task.get("setting") != "generalise":
        chosen = pairs_in(data) if not targets else [(a, b) for b in targets for a in every if a != b]
        return list[tuple[Any, str | None]](chosen)
    found: list[tuple[Any, str | None]] = [(asked or "rest", one) for one in targets or every if one not in sources]
    if not found:
        raise ValueError(f"{', '.join(sources)} are all the domains there are, so none is left to be the target")
    return found
