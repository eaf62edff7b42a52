"""From which domains to which: one command may mean many pairs."""

import json
from collections.abc import Sequence
from typing import Any

DOMAIN = "domain"


def ways_of(
    source: str | None, target: str | None, method: str | None, settings: Sequence[str], how: dict[str, Any]
) -> list[dict[str, Any]]:
    """The arguments of `config.grid` for each pair of domains that was asked for; one for any other task.

    source: one domain, several at once with commas, or "rest"; None: each in turn. target: several with commas are
    taken in turn; None: each in turn. ValueError for --source or --target with another task.
    """
    from vlprompt.config import layered

    if source is not None or target is not None:
        if how["task"] not in (None, DOMAIN):
            raise ValueError(f"--source and --target are of the task {DOMAIN}, not of {how['task']}; leave them out")
        how = how | {"task": DOMAIN}
    task = layered(method, **how, overrides=settings).values["task"]
    if task["name"] != DOMAIN:
        return [how | {"overrides": settings}]
    if source is None and (told := task.get("source")) is not None:
        source = ",".join(told) if isinstance(told, list) else told
    target = task.get("target") if target is None else target
    found = []
    for one, other in _pairs(task, source, target):
        options = [f"task.{key}={json.dumps(value)}" for key, value in (("source", one), ("target", other)) if value]
        found.append(how | {"task": DOMAIN, "overrides": [*settings, *options]})
    return found


def _pairs(task: dict[str, Any], source: str | None, target: str | None) -> list[tuple[Any, str | None]]:
    """(source, target) of each run; all ordered pairs of the dataset's domains where neither is named."""
    sources = None if source is None else source.split(",") if "," in source else source
    targets = None if target is None else target.split(",")
    if task.get("dataset") is None or (targets is not None and source is not None):
        return [(sources, one) for one in targets or [None]]
    from vlprompt.data.adapting import domains_in, pairs_in
    from vlprompt.data.card import open_data

    data = open_data(task["dataset"], skip_broken=bool(task.get("skip_broken", False)))
    every = domains_in(data)
    if len(every) < 2:
        return [(sources, targets[0] if targets else None)]  # the task says what is wrong
    if source is None and task.get("setting") != "generalise":
        chosen = pairs_in(data) if targets is None else [(a, b) for b in targets for a in every if a != b]
        return list[tuple[Any, str | None]](chosen)
    named = [sources] if isinstance(sources, str) else sources or ["rest"]
    return [(sources or "rest", one) for one in targets or every if one not in named]
