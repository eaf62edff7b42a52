"""Published numbers: configs/reference/*.yaml read into entries, each with its source."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlprompt.results.comparability import DOMAIN, STREAM
from vlprompt.results.published import continual_protocol, domain_protocol
from vlprompt.results.published.continual_protocol import renamed
from vlprompt.results.published.entries import Origin, Published, Reference

CHECKS = {
    STREAM: continual_protocol.checked,
    DOMAIN: domain_protocol.checked,
}  # of the tasks whose numbers have a protocol

ABOUT = {"method", "title", "backbone", "shots", "precision", "selection", "seeds", "source", "note", "tolerance"}
ABOUT |= {"arguments", "protocol"}
ROWS = {"rows", "averages", "harmonic_differs"}
FILE = {"task", "numbers", "targets", "eleven", "sources", "published"} | ABOUT


def read_reference(folder: Path) -> Reference:
    """Every file of the folder that has a `published`; ValueError with the file for a key or a source it can't have."""
    import yaml

    entries, eleven = list[Published](), dict[str, tuple[str, ...]]()
    for path in sorted(folder.glob("*.yaml")):
        held = yaml.safe_load(path.read_text("utf-8"))
        if not isinstance(held, dict) or "published" not in held:
            continue
        if strange := set(held) - FILE:
            raise ValueError(f"{path}: unknown key {min(strange)!r}; there are {', '.join(sorted(FILE))}")
        if "eleven" in held:
            eleven[held["task"]] = tuple(held["eleven"])
        for about in held["published"]:
            entries += _entries(held, about, path)
    if not entries:
        raise ValueError(f"there are no published numbers under {str(folder)!r}; configs/reference/ should hold them")
    return Reference(tuple(entries), eleven)


def _entries(held: dict[str, Any], about: dict[str, Any], path: Path) -> Iterator[Published]:
    where = f"{path}: {about.get('title', about)}"
    if strange := set(about) - ABOUT - ROWS:
        raise ValueError(f"{where}: unknown key {min(strange)!r}; there are {', '.join(sorted(ABOUT | ROWS))}")
    told: dict[str, Any] = {k: held[k] for k in ABOUT & set(held)} | {k: about[k] for k in ABOUT & set(about)}
    if missing := {"method", "title", "backbone", "shots", "source"} - set(told):
        raise ValueError(f"{where}: the key {min(missing)!r} is missing")
    if told["source"] not in held["sources"]:
        raise ValueError(f"{where}: there is no source {told['source']!r}; there are {', '.join(held['sources'])}")
    told["protocol"] = _protocol(held["task"], {**held.get("protocol", {}), **about.get("protocol", {})}, where)
    origin, shots = Origin(**held["sources"][told.pop("source")]), told.pop("shots")
    rows = [(dataset, shots, row) for dataset, row in about.get("rows", {}).items()]
    rows += [("average", k, row) for k, row in about.get("averages", {}).items()]
    for dataset, k, row in rows:
        numbers, spread = _numbers(row, held["numbers"], where)
        yield Published(
            task=held["task"],
            dataset=dataset,
            shots=k,
            numbers=renamed(numbers, told["protocol"]),
            origin=origin,
            spread=renamed(spread, told["protocol"]),
            targets=tuple(held.get("targets", ())),
            harmonic_differs=dataset in about.get("harmonic_differs", ()),
            **told,
        )


def _protocol(task: str, protocol: dict[str, Any], where: str) -> dict[str, Any]:
    if task in CHECKS:
        return CHECKS[task](protocol, where)
    if protocol:
        raise ValueError(f"{where}: only numbers of the task {' or '.join(CHECKS)} have a protocol")
    return {}


def _numbers(row: Any, names: list[str], where: str) -> tuple[dict[str, float], dict[str, float]]:
    """Numbers and spreads of a row: a number, a list as `numbers` has them, or {name: number or [mean, spread]}."""
    if isinstance(row, int | float):
        row = [row]
    if isinstance(row, list) and len(row) != len(names):
        raise ValueError(f"{where}: a row has {len(row)} numbers, but they are {', '.join(names)}; write null for none")
    found: dict[str, Any] = dict(zip(names, row, strict=True)) if isinstance(row, list) else row
    if strange := set(found) - set(names):
        raise ValueError(f"{where}: there is no number {min(strange)!r}; there are {', '.join(names)}")
    pairs = {k: v if isinstance(v, list) else [v, None] for k, v in found.items() if v is not None}
    means = {k: float(mean) for k, (mean, _) in pairs.items()}
    return means, {k: float(spread) for k, (_, spread) in pairs.items() if spread is not None}
