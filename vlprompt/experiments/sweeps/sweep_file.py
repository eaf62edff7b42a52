"""The file of a sweep, and the same by key=value: which values each setting takes, and how they combine."""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from vlprompt.config.schemas import parse_schema
from vlprompt.config.sources import SECTIONS, PlainValue, iter_flat_settings, parse_text, read_yaml, strip_quotes
from vlprompt.runtime.errors import suggest_nearest

Combination: TypeAlias = dict[str, PlainValue]  # dotted setting -> value
OPENING, CLOSING, QUOTES = "([{", ")]}", "'\""
SHORT_KEYS = {"method.name": "method", "task.name": "task", "task.dataset": "dataset", "task.shots": "shots"}
NAMES = ("method", "dataset", "task", "backbone", "source", "target")  # keys whose values are names, as they are typed
NUMBERS = ("shots", "seed")  # keys whose values are whole numbers
OPTIONS = (*NAMES, *NUMBERS)  # keys that are no settings
SETTING_SECTIONS = tuple(section for section in SECTIONS if section != "search")  # first parts of settings


class TypedText(str):
    """The value of a setting as it was typed, which the type of its argument reads."""

    __slots__ = ()


class SweepPlace(BaseModel):
    """Where runs are made and written, as the file of a sweep says; options of the command line win.

    Args:
        out: the folder of runs.
        on: slurm or ray; local for this machine.
        jobs: processes, or workers of a cluster.
        slurm: options of Slurm, as `SlurmOptions` has them.
        ray: options of Ray, as `RayOptions` has them.
    """

    model_config = ConfigDict(extra="forbid")

    out: str | None = None
    on: str | None = None
    jobs: int | None = Field(default=None, ge=1)
    slurm: dict[str, Any] = Field(default_factory=dict)
    ray: dict[str, Any] = Field(default_factory=dict)


class _SweepFile(SweepPlace):
    """The file of a sweep; a key of `grid` or `zip` may have one value instead of a list."""

    grid: dict[Any, Any] = Field(default_factory=dict)
    zip: dict[Any, Any] = Field(default_factory=dict)
    runs: list[dict[Any, Any]] = Field(default_factory=list)
    exclude: list[dict[Any, Any]] = Field(default_factory=list)
    settings: dict[Any, Any] = Field(default_factory=dict)


class SweepSpace(BaseModel):
    """What a sweep runs: every combination of `grid`, of the rows of `zip`, and of `runs`, but those of `exclude`.

    Keys are method, dataset, task, backbone, shots, seed, source, target, or a setting such as train.lr.

    Args:
        grid: key -> values, of which every combination is run.
        zip: key -> values; the first of each key go together, the second, and so on.
        runs: settings that go together, written out.
        exclude: combinations to leave out: those that have all of these settings.
        settings: of all runs, over their recipes.
        place: where the runs are made.
        file: that these come from; "" for the command line.
        typed: keys whose values come from the command line.
    """

    model_config = ConfigDict(extra="forbid")

    grid: dict[str, list[Any]] = Field(default_factory=dict)
    zip: dict[str, list[Any]] = Field(default_factory=dict)
    runs: list[dict[str, Any]] = Field(default_factory=list)
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    place: SweepPlace = Field(default_factory=SweepPlace)
    file: str = ""
    typed: frozenset[str] = frozenset()

    @property
    def keys(self) -> set[str]:
        """The keys that differ between runs."""
        return {*self.grid, *self.zip, *(key for run in self.runs for key in run)}

    @property
    def origin(self) -> str:
        """Where it comes from, for errors."""
        return self.file or "sweep"

    def find_origin(self, key: str) -> str:
        """Return the file and the section of it that a key stands in; "" for one of the command line."""
        if not self.file or key in self.typed:
            return ""
        row_keys = {row_key for row in self.runs for row_key in row}
        sections = {"grid": self.grid, "zip": self.zip, "runs": row_keys, "settings": self.settings}
        return next((f"{self.file}: {name}" for name, keys in sections.items() if key in keys), "")

    def count(self) -> int:
        """Count the combinations, excluded ones included, without making them."""
        n_zipped = len(next(iter(self.zip.values()))) if self.zip else 1
        return math.prod(len(values) for values in self.grid.values()) * n_zipped * (len(self.runs) or 1)

    def iter_combinations(self) -> Iterator[Combination]:
        """Yield the combinations that are not excluded; the last key of the grid changes fastest."""
        for combination in self._iter_all():
            if not any(self._matches(combination, pattern) for pattern in self.exclude):
                yield combination

    def find_idle_exclusions(self) -> list[Combination]:
        """Return what is excluded and is no combination; what the command line narrows may be none."""
        idle = [pattern for pattern in self.exclude if not self.typed & pattern.keys()]
        if idle:
            for combination in self._iter_all():
                idle = [pattern for pattern in idle if not self._matches(combination, pattern)]
        return idle

    def _iter_all(self) -> Iterator[Combination]:
        rows = [dict(zip(self.zip, row, strict=True)) for row in zip(*self.zip.values(), strict=True)] or [{}]
        for run, row in product(self.runs or [{}], rows):
            for values in product(*self.grid.values()):
                yield {**run, **row, **dict(zip(self.grid, values, strict=True))}

    def _matches(self, combination: Combination, pattern: Combination) -> bool:
        values = {**self.settings, **combination}
        return all(key in values and _read_value(values[key]) == value for key, value in pattern.items())


def _read_value(value: PlainValue) -> PlainValue:
    """Return a value as a file would have it."""
    return parse_text(str(value)) if isinstance(value, TypedText) else value


def read_sweep_space(path: Path | None, words: Sequence[str]) -> SweepSpace:
    """Read a file, and key=value words over it: `key=a,b` sets the values of a key of the grid.

    Commas in brackets or quotes separate no values, so `task.base_classes=["0","2"]` is one list. The words narrow or
    extend a file: what it excludes is checked against its own values.

    Raises:
        ValueError: for an unknown key, values that can't combine, or none.
    """
    space = SweepSpace() if path is None else _parse_file(path)
    for word in words:
        key, separator, text = word.partition("=")
        key = SHORT_KEYS.get(key, key)
        if not separator or not key:
            raise ValueError(
                f"sweep: expected a file .yaml first, then key=value, got {word!r}. Write method=coop dataset=digits."
            )
        _require_known_key(key, f"the option {word!r}")
        if key in space.zip or any(key in run for run in space.runs):
            raise ValueError(
                f"{word}: expected a key of the grid, got one that {space.file} has under zip or runs. Change it there."
            )
        values = [_parse_word(key, part) for part in split_values(text)]
        space = space.model_copy(update={"grid": {**space.grid, key: values}, "typed": space.typed | {key}})
    _validate(space)
    return space


def _parse_word(key: str, text: str) -> PlainValue:
    if key in NAMES:
        return strip_quotes(text)
    return parse_text(text) if key in NUMBERS else TypedText(text)


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
    content = read_yaml(path, "sweep", list(_SweepFile.model_fields))
    if stray := [key for key in content if str(key).partition(".")[0] in (*OPTIONS, *SETTING_SECTIONS)]:
        raise ValueError(
            f"{path}: {stray[0]}: expected under grid, zip, runs or settings, got it beside them. Move it."
        )
    file = parse_schema(_SweepFile, content, str(path))
    grid, zipped = (
        {key: value if isinstance(value, list) else [value] for key, value in _flatten(section, origin).items()}
        for section, origin in ((file.grid, f"{path}: grid"), (file.zip, f"{path}: zip"))
    )
    runs = [_flatten(row, f"{path}: runs") for row in file.runs]
    settings = _flatten(file.settings, f"{path}: settings")
    for name, section in (("grid", grid), ("zip", zipped)):
        for key, values in section.items():
            _require_values(key, values, f"{path}: {name}")
    for name, section in (("settings", settings), *(("runs", row) for row in runs)):
        for key, value in section.items():
            _require_values(key, [value], f"{path}: {name}")
    exclude = [_flatten(row, f"{path}: exclude") for row in file.exclude]
    place = SweepPlace(**{name: getattr(file, name) for name in SweepPlace.model_fields})
    space = SweepSpace(
        grid=grid, zip=zipped, runs=runs, exclude=exclude, settings=settings, place=place, file=str(path)
    )
    _require_excludable(space)
    return space


def _flatten(settings: dict[str, PlainValue], origin: str) -> Combination:
    """Return dotted keys, one for each setting: task: {dataset: digits} is dataset."""
    flat: Combination = {}
    for key, value in iter_flat_settings(settings):
        short = SHORT_KEYS.get(key, key)
        if short in flat:
            raise ValueError(f"{origin}: {short}: expected one value, got it as {key} too. Leave one of them out.")
        flat[short] = value
    return flat


def _require_known_key(key: str, origin: str) -> None:
    """ValueError for a key that is neither an option nor in a section of settings."""
    known = list(dict.fromkeys([*OPTIONS, *SETTING_SECTIONS]))
    if key not in OPTIONS and key.partition(".")[0] not in SETTING_SECTIONS:
        hint = "" if "." in key else ". Settings have their section, as train.lr."
        raise ValueError(f"{origin}: unknown key {key!r}; {suggest_nearest(key, known)}{hint}")


def _require_values(key: str, values: Sequence[PlainValue], origin: str) -> None:
    """ValueError for a key that there is not, a name that is no text, and a number that is none."""
    _require_known_key(key, origin)
    for value in values:
        if value is None or key not in OPTIONS:
            continue
        if key in NUMBERS and type(value) is not int:
            hint = ", or null for all" if key == "shots" else ""
            raise ValueError(f"{origin}: {key}: expected whole numbers, got {value!r}. Write {key}: [1, 2, 4]{hint}.")
        if key in NUMBERS:
            continue
        if not isinstance(value, str):
            raise ValueError(
                f"{origin}: {key}: expected names, got {value!r}. Write lists under grid or zip, what goes together "
                "under runs, and numbers in quotes."
            )
        if "," in value and (key in ("method", "task") or (key == "dataset" and not Path(value).exists())):
            names = ", ".join(part.strip() for part in value.split(","))
            raise ValueError(f"{origin}: {key}: expected a list of names, got {value!r}. Write {key}: [{names}].")


def _require_excludable(space: SweepSpace) -> None:
    """ValueError for an excluded value that no run of the file has, as a mistyped one."""
    values = {key: [value] for key, value in space.settings.items()}
    for row in space.runs:
        for key, value in row.items():
            values[key] = [*values.get(key, []), value]
    values |= {**space.grid, **space.zip}
    for key, value in (pair for pattern in space.exclude for pair in pattern.items()):
        if key in values and value not in values[key]:
            hint = suggest_nearest(str(value), [str(one) for one in values[key]])
            raise ValueError(f"{space.file}: exclude: {key}: expected a value of the sweep, got {value!r}; {hint}")


def _validate(space: SweepSpace) -> None:
    """ValueError for values that can't combine, or none."""
    origin = space.origin
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
