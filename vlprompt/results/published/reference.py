"""Read the published numbers of configs/reference/*.yaml."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlprompt.results.comparability import CONTINUAL, DOMAIN
from vlprompt.results.published import continual_protocol, domain_protocol
from vlprompt.results.published.continual_protocol import rename_metrics
from vlprompt.results.published.entries import USES, NumberSource, PublishedResult, Reference
from vlprompt.runtime.yaml_text import load_yaml

PROTOCOL_VALIDATORS = {  # of the tasks whose numbers have a protocol
    CONTINUAL: continual_protocol.validate_continual_protocol,
    DOMAIN: domain_protocol.validate_domain_protocol,
}
ENTRY_KEYS = {"method", "title", "backbone", "shots", "precision", "selection", "seeds", "source", "note", "tolerance"}
ENTRY_KEYS |= {"arguments", "protocol", "uses", "run_by"}
REQUIRED_KEYS = {"method", "title", "backbone", "shots", "source"}
ROW_KEYS = {"rows", "averages", "has_other_harmonic"}
FILE_KEYS = {"task", "metrics", "targets", "averaged_datasets", "sources", "published"} | ENTRY_KEYS


def read_reference(folder: Path) -> Reference:
    """Read every file of the folder that has the key `published`.

    Raises:
        ValueError: for an unknown or missing key, an unknown source or a wrong value, with the file.
    """
    entries, averaged_datasets = list[PublishedResult](), dict[str, tuple[str, ...]]()
    for path in sorted(folder.glob("*.yaml")):
        content = load_yaml(path.read_text("utf-8"))
        if not isinstance(content, dict) or "published" not in content:
            continue
        _reject_unknown_keys(content, FILE_KEYS, str(path))
        if "averaged_datasets" in content:
            averaged_datasets[content["task"]] = tuple(content["averaged_datasets"])
        for entry in content["published"]:
            entries += _parse_entries(content, entry, path)
    if not entries:
        raise ValueError(
            f"{str(folder)!r}: expected files of published numbers, got none. They are those of configs/reference/."
        )
    return Reference(tuple(entries), averaged_datasets)


def _reject_unknown_keys(content: Mapping[str, Any], known: set[str], location: str) -> None:
    if unknown := set(content) - known:
        raise ValueError(f"{location}: unknown key {min(unknown)!r}; there are {', '.join(sorted(known))}")


def _parse_entries(content: dict[str, Any], entry: dict[str, Any], path: Path) -> Iterator[PublishedResult]:
    """Parse one entry of a file; keys of the file hold for all its entries that don't have them."""
    location = f"{path}: {entry.get('title', entry)}"
    _reject_unknown_keys(entry, ENTRY_KEYS | ROW_KEYS, location)
    fields: dict[str, Any] = {k: v for k, v in {**content, **entry}.items() if k in ENTRY_KEYS}
    if missing := REQUIRED_KEYS - set(fields):
        raise ValueError(f"{location}: the key {min(missing)!r} is missing. Add it to the entry or to the file.")
    if fields["source"] not in content["sources"]:
        raise ValueError(
            f"{location}: source: expected one of {', '.join(content['sources'])}, got {fields['source']!r}. Use one "
            "of these, or add it to sources."
        )
    fields["uses"] = tuple(fields.get("uses", ()))
    if unknown := set(fields["uses"]) - set(USES):
        raise ValueError(f"{location}: uses: expected some of {', '.join(USES)}, got {min(unknown)!r}. Correct it.")
    protocol = {**content.get("protocol", {}), **entry.get("protocol", {})}
    fields["protocol"] = _validate_task_protocol(content["task"], protocol, location)
    source, shots = NumberSource(**content["sources"][fields.pop("source")]), fields.pop("shots")
    rows = [(dataset, shots, row) for dataset, row in entry.get("rows", {}).items()]
    rows += [("average", k, row) for k, row in entry.get("averages", {}).items()]
    for dataset, row_shots, row in rows:
        metrics, std = _parse_row(row, content["metrics"], location)
        yield PublishedResult(
            task=content["task"],
            dataset=dataset,
            shots=row_shots,
            metrics=rename_metrics(metrics, fields["protocol"]),
            source=source,
            std=rename_metrics(std, fields["protocol"]),
            targets=tuple(content.get("targets", ())),
            has_other_harmonic=dataset in entry.get("has_other_harmonic", ()),
            **fields,
        )


def _validate_task_protocol(task: str, protocol: dict[str, Any], location: str) -> dict[str, Any]:
    if task in PROTOCOL_VALIDATORS:
        return PROTOCOL_VALIDATORS[task](protocol, location)
    if protocol:
        tasks = " or ".join(PROTOCOL_VALIDATORS)
        raise ValueError(
            f"{location}: protocol: only numbers of the task {tasks} have one, got task {task}. Remove it."
        )
    return {}


def _parse_row(row: Any, metrics: list[str], location: str) -> tuple[dict[str, float], dict[str, float]]:
    """Parse one row of numbers.

    Args:
        row: a number, a list in the order of `metrics`, or {name: number or [mean, deviation]}.
        metrics: the names of the file's numbers.
        location: where the row is, for errors.

    Returns:
        The means, and the deviations that are known.
    """
    if isinstance(row, int | float):
        row = [row]
    if isinstance(row, list) and len(row) != len(metrics):
        names = ", ".join(metrics)
        raise ValueError(
            f"{location}: expected rows of {names}, got {len(row)} numbers. Write null for an unknown one."
        )
    numbers: dict[str, Any] = dict(zip(metrics, row, strict=True)) if isinstance(row, list) else row
    if unknown := set(numbers) - set(metrics):
        raise ValueError(f"{location}: unknown number {min(unknown)!r}; there are {', '.join(metrics)}")
    pairs = {k: v if isinstance(v, list) else [v, None] for k, v in numbers.items() if v is not None}
    means = {k: float(mean) for k, (mean, _) in pairs.items()}
    return means, {k: float(std) for k, (_, std) in pairs.items() if std is not None}
