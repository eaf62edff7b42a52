"""Published numbers: configs/reference/*.yaml read into entries, each with its source."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlprompt.results import pairs, streams
from vlprompt.results.protocols import DOMAIN, STREAM
from vlprompt.results.streams import renamed

CHECKS = {STREAM: streams.checked, DOMAIN: pairs.checked}  # of the tasks whose numbers have a protocol

ABOUT = {"method", "title", "backbone", "shots", "precision", "selection", "seeds", "source", "note", "tolerance"}
ABOUT |= {"arguments", "protocol"}
ROWS = {"rows", "averages", "harmonic_differs"}
FILE = {"task", "numbers", "targets", "eleven", "sources", "published"} | ABOUT


@dataclass(frozen=True)
class Origin:
    """Where a number was found, how it was read there, and whether that can be relied on (memory and plots can't)."""

    text: str
    how: str
    verified: bool


@dataclass(frozen=True)
class Published:
    """What one source says of one method on one dataset ("average": over the eleven), in percent.

    shots: images per class, "any" where nothing is trained, "all" for every training image. precision, selection: how
    it was run (None: not known). arguments: those of the method that tell its variants apart. spread: standard
    deviations by number, where known. targets: what "average" of a transfer is over. tolerance: of numbers that were
    read off a plot. harmonic_differs: the harmonic mean is printed so, but is not that of base and new. protocol: of a
    stream or of domains, as their `checked` has it; numbers of streams bear the names of ours.
    """

    task: str
    method: str
    title: str
    dataset: str
    shots: int | str
    backbone: str
    numbers: dict[str, float]
    origin: Origin
    spread: dict[str, float]
    precision: str | None = None
    selection: str | None = None
    seeds: int | None = None
    note: str = ""
    tolerance: float = 0.0
    targets: tuple[str, ...] = ()
    harmonic_differs: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """All entries, and by task the datasets that an average is over."""

    entries: tuple[Published, ...]
    eleven: dict[str, tuple[str, ...]]


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
