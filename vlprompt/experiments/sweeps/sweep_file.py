"""The file of a sweep, and the same by key=value: which values each setting takes, and how they combine."""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from vlprompt.config.sources import PlainValue, iter_flat_settings, parse_text, read_yaml, strip_quotes
from vlprompt.runtime.errors import suggest_nearest

Combination: TypeAlias = dict[str, PlainValue]  # dotted setting -> value
OPENING, CLOSING, QUOTES = "([{", ")]}", "'\""
SHORT_KEYS = {"method.name": "method", "task.name": "task", "task.dataset": "dataset", "task.shots": "shots"}
NAMES = ("method", "dataset", "task", "backbone", "source", "target")  # keys whose values are names, as they are typed
OPTIONS = (*NAMES, "shots", "seed")  # keys that are no settings


class SweepSpace(BaseModel):
    """What a sweep runs: every combination of `grid`, of the rows of `zip`, and of `runs`, but those of `exclude`.

    Keys are method, dataset, task, backbone, shots, seed, source, target, or a setting such as train.lr.

    Args:
        grid: key -> values, of which every combination is run.
        zip: key -> values; the first of each key go together, the second, and so on.
        runs: settings that go together, written out.
        exclude: combinations to leave out: those that have all of these settings.
        settings: of all runs, over their recipes.
    """

    model_config = ConfigDict(extra="forbid")

    grid: dict[str, list[Any]] = Field(default_factory=dict)
    zip: dict[str, list[Any]] = Field(default_factory=dict)
    runs: list[dict[str, Any]] = Field(default_factory=list)
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        """The keys that differ between runs."""
        return {*self.grid, *self.zip, *(key for run in self.runs for key in run)}

    def count(self) -> int:
        """Count the combinations, excluded ones included, without making them."""
        n_zipped = len(next(iter(self.zip.values()))) if self.zip else 1
        return math.prod(len(values) for values in self.grid.values()) * n_zipped * (len(self.runs) or 1)

    def iter_combinations(self) -> Iterator[Combination]:
        """Yield the combinations that are not excluded; the last key of the grid changes fastest."""
        rows = [dict(zip(self.zip, row, strict=True)) for row in zip(*self.zip.values(), strict=True)] or [{}]
        for run, row in product(self.runs or [{}], rows):
            for values in product(*self.grid.values()):
                combination = {**run, **row, **dict(zip(self.grid, values, strict=True))}
                if not any(_matches({**self.settings, **combination}, pattern) for pattern in self.exclude):
                    yield combination


def _matches(combination: Combination, pattern: Combination) -> bool:
    return all(key in combination and combination[key] == value for key, value in pattern.items())


def read_sweep_space(path: Path | None, words: Sequence[str]) -> SweepSpace:
    """Read a file, and key=value words over it: `key=a,b` sets the values of a key of the grid.

    Commas in brackets or quotes separate no values, so `task.base_classes=["0","2"]` is one list. The words narrow or
    extend a file: what it excludes is checked against its own values.

    Raises:
        ValueError: for an unknown key, values that can't combine, or none.
    """
    origin = "the command line" if path is None else str(path)
    space = SweepSpace() if path is None else _parse_file(path)
    _require_excludable(space, origin)
    for word in words:
        key, separator, text = word.partition("=")
        key = SHORT_KEYS.get(key, key)
        if not separator or not key:
            raise ValueError(
                f"sweep: expected a file .yaml first, then key=value, got {word!r}. Write method=coop dataset=digits."
            )
        if key in space.zip or any(key in run for run in space.runs):
            raise ValueError(
                f"{word}: expected a key of the grid, got one that {origin} has under zip or runs. Change it there."
            )
        parse = strip_quotes if key in NAMES else parse_text
        values = [parse(part) for part in split_values(text)]
        space = space.model_copy(update={"grid": {**space.grid, key: values}})
    _validate(space, origin)
    return space


def split_values(text: str) -> list[str]:
    """Split at the commas that are in no brackets and no quotes; [] for an empty text.

    A quote counts where a value begins, and in brackets, so that an apostrophe in a text is one.

    Raises:
        ValueError: for brackets or quotes that do not end.
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES and (depth or not parts[-1].strip()):
            quote = character
        depth += (character in OPENING) - (character in CLOSING) if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if depth or quote:
        raise ValueError(
            f"sweep: expected brackets and quotes that end, got {text!r}. Put quotes around a value that has others."
        )
    return [part.strip() for part in parts if part.strip()]


def _parse_file(path: Path) -> SweepSpace:
    content = read_yaml(path)
    sections = list(SweepSpace.model_fields)
    if unknown := [key for key in content if key not in sections]:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; {suggest_nearest(str(unknown[0]), sections)}")
    for section in ("grid", "zip", "settings"):
        if not isinstance(content.get(section, {}), dict):
            raise ValueError(
                f"{path}: {section}: expected keys, got {content[section]!r}. Write {section}: {{key: ...}}."
            )
    for section in ("runs", "exclude"):
        rows = content.get(section, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(
                f"{path}: {section}: expected a list of settings, got {rows!r}. Write - {{method: coop, shots: 1}}."
            )
    flat = {
        section: _flatten(content.get(section, {}), f"{path}: {section}") for section in ("grid", "zip", "settings")
    }
    listed: dict[str, Any] = {
        section: {key: value if isinstance(value, list) else [value] for key, value in flat[section].items()}
        for section in ("grid", "zip")
    }
    rows: dict[str, Any] = {
        section: [_flatten(row, f"{path}: {section}") for row in content.get(section, [])]
        for section in ("runs", "exclude")
    }
    return SweepSpace(**listed, **rows, settings=flat["settings"])


def _flatten(settings: dict[str, PlainValue], origin: str) -> Combination:
    """Return dotted keys, one for each setting: task: {dataset: digits} is dataset."""
    flat: Combination = {}
    for key, value in iter_flat_settings(settings):
        short = SHORT_KEYS.get(key, key)
        if short in flat:
            raise ValueError(f"{origin}: {short}: expected one value, got it as {key} too. Leave one of them out.")
        flat[short] = value
    return flat


def _require_excludable(space: SweepSpace, origin: str) -> None:
    """ValueError for an excluded value that no run of the file has, as a mistyped one."""
    values = {key: [value] for key, value in space.settings.items()}
    for row in space.runs:
        for key, value in row.items():
            values[key] = [*values.get(key, []), value]
    values |= {**space.grid, **space.zip}
    for key, value in (pair for pattern in space.exclude for pair in pattern.items()):
        if key in values and value not in values[key]:
            hint = suggest_nearest(str(value), [str(one) for one in values[key]])
            raise ValueError(f"{origin}: exclude: {key}: expected a value of the sweep, got {value!r}; {hint}")


def _validate(space: SweepSpace, origin: str) -> None:
    """ValueError for values that can't combine, or none."""
    if not space.keys:
        raise ValueError(
            f"{origin}: expected values to combine, got none. Write method=coop dataset=digits shots=1,2,4."
        )
    if empty := [key for key, values in {**space.grid, **space.zip}.items() if not values]:
        raise ValueError(f"{origin}: {empty[0]}: expected values, got none. Add some, or leave the key out.")
    lengths = {key: len(values) for key, values in space.zip.items()}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{n} of {key}" for key, n in lengths.items())
        raise ValueError(f"{origin}: zip: expected as many values of each key, got {text}. Add or remove some.")
    sections = [set(space.grid), set(space.zip), {key for run in space.runs for key in run}]
    if repeated := [key for key in sorted(space.keys) if sum(key in section for section in sections) > 1]:
        raise ValueError(
            f"{origin}: {repeated[0]}: expected in one of grid, zip and runs, got it in several. Leave it in one."
        )
    known = space.keys | set(space.settings)
    if unknown := [key for pattern in space.exclude for key in pattern if key not in known]:
        raise ValueError(f"{origin}: exclude: unknown key {unknown[0]!r}; {suggest_nearest(unknown[0], sorted(known))}")
