"""Tables over runs: mean and spread over seeds, to the terminal, Markdown, CSV and JSON."""

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlprompt.metrics import harmonic_mean
from vlprompt.results.folder import Result

MAIN = {
    "few_shot": "accuracy",
    "base_to_new": "harmonic",
    "transfer": "average",
}  # the number that a task is judged by; others: the first of the summary
UNITS = (
    "percent, mean±standard deviation over n seeds; %: trained of the backbone's parameters; s: seconds a run, "
    "MB: peak memory"  # the deviation is divided by n, as in the field
)


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation (divided by n) of a number over n seeds."""

    mean: float
    spread: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}±{self.spread:.1f}" if self.n > 1 else f"{self.mean:.1f}"


@dataclass(frozen=True)
class Row:
    """All seeds of one configuration."""

    method: str
    backbone: str
    dataset: str
    task: str
    shots: int | None
    variant: str  # arguments of the method and the task that tell apart rows of one method
    seeds: tuple[int, ...]
    numbers: dict[str, Cell]
    trained: int
    percent: float | None  # trained of the backbone's parameters; None: an older run, or a backbone without any
    stored: float | None  # bytes of what was learned
    seconds: float
    memory: float

    def flat(self) -> dict[str, Any]:
        """One level, for CSV and JSON."""
        scores = {
            f"{k}{end}": value for k, c in self.numbers.items() for end, value in (("", c.mean), ("_sd", c.spread))
        }
        about = {k: getattr(self, k) for k in ("task", "dataset", "backbone", "method", "variant", "shots")}
        cost = {"trained_parameters": self.trained, "trained_percent": self.percent, "stored_bytes": self.stored}
        cost |= {"seconds": self.seconds, "peak_memory_mb": self.memory}
        return about | {"n": len(self.seeds)} | scores | cost


def _same(result: Result) -> str:
    """What runs that differ only by their seed have in common, the test images included."""
    config = json.loads(json.dumps(result.config))
    config.pop("seed")
    config["task"].pop("seed", None)
    return json.dumps([config, result.protocol.get("test")], sort_keys=True)


def _settings(result: Result) -> dict[str, Any]:
    """All settings in which two rows may differ."""
    found = {f"{s}.{k}": v for s in ("method", "task", "train") for k, v in result.config[s].items()
             if k not in ("name", "seed", "dataset", "shots")}  # fmt: skip
    found |= {f"look.{k}": v for k, v in result.protocol.get("transform", {}).items()}
    return found | {"images.test": result.protocol.get("test")}


def _variants(results: Sequence[Result]) -> dict[str, str]:
    """For each configuration, what tells it from others of its method: the method's settings, and more where needed."""
    families: dict[tuple[str, ...], dict[str, tuple[str, dict[str, Any]]]] = {}
    for r in results:
        c = r.config
        family = c["method"]["name"], c["backbone"], c["task"]["name"], str(c["task"].get("dataset"))
        families.setdefault(family, {})[_same(r)] = str(c["task"].get("shots")), _settings(r)
    found = {}
    for members in families.values():
        keys = sorted({k for _, told in members.values() for k in told})
        differ = [k for k in keys if len({json.dumps(told.get(k)) for _, told in members.values()}) > 1]
        for sections in (("method",), ("method", "task"), ("method", "task", "train", "look", "images")):
            chosen = [k for k in differ if k.partition(".")[0] in sections]
            if len({(shots, *(json.dumps(t.get(k)) for k in chosen)) for shots, t in members.values()}) == len(members):
                break
        for same, (_, told) in members.items():
            found[same] = ", ".join(
                f"{k.partition('.')[2]}={_short(told.get(k), [t.get(k) for _, t in members.values()])}"
                for k in chosen
                if told.get(k) is not None
            )
    return found


def _short(value: Any, every: Sequence[Any]) -> str:
    """A value among others: letters of a list in a row, settings of a reader or method by their name if that tells."""
    if isinstance(value, dict) and "name" in value:
        same_name = {json.dumps(v) for v in every if isinstance(v, dict) and v.get("name") == value["name"]}
        return value["name"] if len(same_name) == 1 else str(value)
    return "".join(map(str, value)) if isinstance(value, list) and all(len(str(v)) == 1 for v in value) else str(value)


def rows(results: Sequence[Result]) -> list[Row]:
    """One row per configuration, over its seeds; the harmonic mean is that of the mean base and the mean new."""
    variants, groups = _variants(results), {}
    for result in results:
        groups.setdefault(_same(result), []).append(result)
    found = []
    for same, members in groups.items():
        config = members[0].config
        numbers = {}
        for name in members[0].summary:
            values = [r.summary[name] for r in members]
            numbers[name] = Cell(statistics.fmean(values), statistics.pstdev(values), len(values))
        if {"base", "new", "harmonic"} <= set(numbers):
            mean = harmonic_mean(numbers["base"].mean, numbers["new"].mean)
            numbers["harmonic"] = Cell(mean, numbers["harmonic"].spread, numbers["harmonic"].n)
        cost = {k: statistics.fmean(r.cost[k] for r in members) for k in ("seconds", "peak_memory_mb")}
        row = Row(
            method=config["method"]["name"],
            backbone=config["backbone"],
            dataset=str(config["task"].get("dataset")),
            task=config["task"]["name"],
            shots=config["task"].get("shots"),
            variant=variants[same],
            seeds=tuple(sorted(r.config["seed"] for r in members)),
            numbers=numbers,
            trained=int(members[0].cost["trained_parameters"]),
            percent=members[0].cost.get("trained_percent"),
            stored=members[0].cost.get("stored_bytes"),
            seconds=cost["seconds"],
            memory=cost["peak_memory_mb"],
        )
        found.append(row)
    order = {"zero_shot": -1}
    return sorted(
        found, key=lambda r: (r.task, r.dataset, order.get(r.method, 0), r.backbone, r.method, r.variant, r.shots or 0)
    )


@dataclass(frozen=True)
class Grid:
    """A table ready to be shown.

    The last `cost` columns say what it took and may be left out where there is no room.
    """

    title: str
    head: list[str]
    lines: list[list[str]]
    cost: int


COST = ["n", "trained", "%", "s", "MB"]  # seeds, trained parameters, their share, seconds, the process's peak memory


def grids(found: Sequence[Row]) -> list[Grid]:
    """One per task and dataset. Where several numbers of shots were run, they are the columns."""
    made = []
    for task, dataset in dict.fromkeys((r.task, r.dataset) for r in found):
        some = [r for r in found if (r.task, r.dataset) == (task, dataset)]
        usual = Counter(r.backbone for r in some).most_common(1)[0][0]
        main, shots = MAIN.get(task, next(iter(some[0].numbers))), sorted({r.shots for r in some}, key=_many)
        by_shots = main == "accuracy" and len(shots) > 1
        lines = []
        for name in dict.fromkeys(_label(r, usual) for r in some):
            mine = {r.shots: r for r in some if _label(r, usual) == name}
            if by_shots:
                cells = [str(mine[k].numbers[main]) if k in mine else "" for k in shots]
                lines.append([name, *cells, *_cost([*mine.values()])])
            else:
                lines += [[name, str(k or "all"), *map(str, r.numbers.values()), *_cost([r])] for k, r in mine.items()]
        numbers = [_told(k) for k in shots] if by_shots else ["shots", *(n.replace("_", " ") for n in some[0].numbers)]
        title = f"{task} on {dataset}, {usual}" + (f": {main}" if by_shots else "")
        made.append(Grid(title, ["method", *numbers, *COST], lines, len(COST)))
    return made


def _many(shots: int | None) -> float:
    return float("inf") if shots is None else shots


def _told(shots: int | None) -> str:
    return "all" if shots is None else f"{shots} shot{'s' * (shots != 1)}"


def _label(row: Row, usual: str) -> str:
    name = row.method if row.backbone == usual else f"{row.method} on {row.backbone}"
    return f"{name} ({row.variant})" if row.variant else name


def _cost(some: Sequence[Row]) -> list[str]:
    seeds = sorted({len(r.seeds) for r in some})
    n = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"
    seconds, memory = max(r.seconds for r in some), max(r.memory for r in some)
    most = max(some, key=lambda r: r.trained)
    share = "" if most.percent is None else f"{most.percent:.2g}" if most.percent < 1 else f"{most.percent:.1f}"
    return [n, f"{most.trained:,}", share, f"{seconds:.1f}", f"{memory:.0f}"]


def render(found: Sequence[Row], form: str) -> str:
    """As "markdown", "csv" or "json"."""
    return markdown(grids(found), UNITS) if form == "markdown" else as_data([row.flat() for row in found], form)


def markdown(found: Sequence[Grid], units: str) -> str:
    parts = []
    for grid in found:
        lines = [grid.head, ["---", *["---:"] * (len(grid.head) - 1)], *grid.lines]
        parts.append(f"**{grid.title}** ({units})\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def as_data(flat: Sequence[dict[str, Any]], form: str) -> str:
    """Every number as "csv" or "json"."""
    if form == "json":
        return json.dumps(flat, indent=1) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in flat for k in row)))
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
