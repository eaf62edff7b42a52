"""From which domains to which: one command may mean many pairs."""

from typing import Any

from vlprompt.config.sources import format_override

Pair = tuple[str | list[str] | None, str | None]  # source and target


def expand_domain_pairs(task: dict[str, Any], source: str | None = None, target: str | None = None) -> list[list[str]]:
    """Return the key=value settings of each pair of domains.

    Args:
        task: the settings of a domain task, with the source and target of files and recipes.
        source: one domain, several at once with commas, "rest", or "none" for a target alone; None for each in turn.
        target: one domain, or several in turn with commas; None for each in turn.

    Raises:
        ValueError: where every domain is a source.
    """
    sources = _split_names(task.get("source") if source is None else source)
    targets = _split_names(target or task.get("target"))
    if not all(isinstance(name, str) for name in (*sources, *targets)):
        return [[]]  # the settings are checked where they are resolved
    pairs = []
    for source_domains, target_domain in _list_pairs(task, sources, targets):
        settings = [format_override("task.source", source_domains)] if source_domains or sources else []
        settings += [format_override("task.target", target_domain)] if target_domain else []
        pairs.append(settings)
    return pairs


def _split_names(value: Any) -> list[Any]:
    """Return names given as one, several with commas, or a list."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return value if isinstance(value, list) else [] if value is None else [value]


def _list_pairs(task: dict[str, Any], sources: list[str], targets: list[str]) -> list[Pair]:
    """Return (source, target) of each run; all ordered pairs of the dataset's domains where neither is named."""
    nothing = "none" if task.get("setting") == "generalise" and sources else None  # there, no source means the rest
    source = nothing if sources in ([], ["none"]) else sources[0] if len(sources) == 1 else sources
    if task.get("dataset") is None or (targets and sources):
        return [(source, target) for target in targets or [None]]
    from vlprompt.data.loading import open_data
    from vlprompt.data.splits.domains import list_domain_pairs, list_domains

    data = open_data(task["dataset"], skip_broken=bool(task.get("skip_broken", False)), layout=task.get("layout"))
    domains = list_domains(data)
    if len(domains) < 2:
        return [(source, targets[0] if targets else None)]  # the task itself rejects it
    if sources == ["none"]:
        return [(nothing, target) for target in domains]
    if not sources and task.get("setting") != "generalise":
        pairs = list_domain_pairs(data) if not targets else [(a, b) for b in targets for a in domains if a != b]
        return list[Pair](pairs)
    rest: list[Pair] = [(source or "rest", target) for target in targets or domains if target not in sources]
    if not rest:
        raise ValueError(
            f"--source: expected at least one domain left as the target, got all of them ({', '.join(sources)}). "
            "Name fewer sources."
        )
    return rest
