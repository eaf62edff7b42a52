"""Tables over runs: mean and spread over seeds."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlprompt.metrics import harmonic_mean
from vlprompt.results.comparability import DOMAIN, STREAM, Notes, differing, facts, same, table_of, variants
from vlprompt.results.run_folder import Result

MAIN = {
    "few_shot": "accuracy",
    "base_to_new": "harmonic",
    "transfer": "average",
    STREAM: "accuracy",
    DOMAIN: "accuracy",
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


Seeds = dict[int, float]  # a number by seed


def mean_over(tasks: Sequence[Seeds | None]) -> Cell | None:
    """Over tasks for each seed, then over seeds; without a spread where tasks had other seeds; None when one lacks."""
    there = [t for t in tasks if t]
    if len(there) < len(tasks):
        return None
    if len({frozenset(t) for t in there}) > 1:
        return Cell(statistics.fmean(statistics.fmean(t.values()) for t in there), 0.0, 1)
    values = [statistics.fmean(t[seed] for t in there) for seed in there[0]]
    return Cell(statistics.fmean(values), statistics.pstdev(values), len(values))


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
    kind: str  # of a stream, as class_incremental
    stages: int | None  # of a stream
    runs: tuple[Result, ...]

    @property
    def table(self) -> tuple[str, str, str, int | None]:
        """Rows of one table agree in this."""
        return self.task, self.dataset, self.kind, self.stages

    @property
    def oracle(self) -> bool:
        """Whether test labels of the target chose the epoch; such a row never stands unmarked."""
        return any(r.config["train"].get("select") == "oracle" for r in self.runs)

    def flat(self) -> dict[str, Any]:
        """One level, for CSV and JSON."""
        scores = flat_cells(self.numbers)
        about = {k: getattr(self, k) for k in ("task", "dataset", "backbone", "method", "variant", "shots")}
        about |= {"kind": self.kind, "stages": self.stages} if self.task == STREAM else {}
        cost = {"trained_parameters": self.trained, "trained_percent": self.percent, "stored_bytes": self.stored}
        cost |= {"seconds": self.seconds, "peak_memory_mb": self.memory}
        return about | {"n": len(self.seeds)} | scores | cost


def flat_cells(cells: Mapping[str, Cell | None]) -> dict[str, float | None]:
    """Every number and its deviation, `NAME` and `NAME_sd`."""
    return {f"{k}{end}": None if c is None else value for k, c in cells.items()
            for end, value in (("", c and c.mean), ("_sd", c and c.spread))}  # fmt: skip


def rows(results: Sequence[Result]) -> list[Row]:
    """One row per configuration, over its seeds; the harmonic mean is that of the mean base and the mean new."""
    told, groups = variants(results), {}
    for result in results:
        groups.setdefault(same(result), []).append(result)
    found = []
    for key, members in groups.items():
        config = members[0].config
        task, dataset, kind, stages = table_of(members[0], results)
        numbers = {}
        for name in union([list(r.summary) for r in members]):
            values = [r.summary[name] for r in members if name in r.summary]
            numbers[name] = Cell(statistics.fmean(values), statistics.pstdev(values), len(values))
        if {"base", "new", "harmonic"} <= set(numbers):
            mean = harmonic_mean(numbers["base"].mean, numbers["new"].mean)
            numbers["harmonic"] = Cell(mean, numbers["harmonic"].spread, numbers["harmonic"].n)
        cost = {k: statistics.fmean(r.cost[k] for r in members) for k in ("seconds", "peak_memory_mb")}
        row = Row(
            method=config["method"]["name"],
            backbone=config["backbone"],
            dataset=dataset,
            task=task,
            shots=config["task"].get("shots"),
            variant=told[key],
            seeds=tuple(sorted(r.config["seed"] for r in members)),
            numbers=numbers,
            trained=int(members[0].cost["trained_parameters"]),
            percent=members[0].cost.get("trained_percent"),
            stored=members[0].cost.get("stored_bytes"),
            seconds=cost["seconds"],
            memory=cost["peak_memory_mb"],
            kind=kind,
            stages=stages,
            runs=tuple(sorted(members, key=lambda r: r.config["seed"])),
        )
        found.append(row)
    order = {"zero_shot": -1}
    return sorted(
        found,
        key=lambda r: (r.task, r.dataset, r.kind, r.stages or 0, order.get(r.method, 0), r.backbone, r.method,
                       r.variant, r.shots or 0),
    )  # fmt: skip


def union(lists: Sequence[list[str]]) -> list[str]:
    """The names of all lists; one that only some have stands behind the name that it follows there."""
    found = list[str]()
    for names in lists:
        place = 0
        for name in names:
            if name not in found:
                found.insert(place, name)
            place = found.index(name) + 1
    return found


@dataclass(frozen=True)
class Grid:
    """A table ready to be shown, and its footnotes.

    The last `cost` columns say what it took and may be left out where there is no room, then the `spare` before them.
    """

    title: str
    head: list[str]
    lines: list[list[str]]
    cost: int
    spare: int = 0
    notes: tuple[str, ...] = ()


COST = ["n", "trained", "%", "s", "MB"]  # seeds, trained parameters, their share, seconds, the process's peak memory


def grids(found: Sequence[Row]) -> list[Grid]:
    """One per task and dataset, and kind and length of a stream. Several numbers of few shots are the columns."""
    made = []
    for key in dict.fromkeys(r.table for r in found):
        some = [r for r in found if r.table == key]
        (task, dataset, kind, stages), stream = key, key[0] == STREAM
        usual = Counter(r.backbone for r in some).most_common(1)[0][0]
        names = union([list(r.numbers) for r in some])
        main, shots = MAIN.get(task, names[0]), sorted({r.shots for r in some}, key=_many)
        by_shots = main == "accuracy" and len(shots) > 1 and not stream
        told, notes = marked(some)
        lines = []
        for name in dict.fromkeys(label(r, usual) for r in some):
            mine = {r.shots: r for r in some if label(r, usual) == name}
            letter = [" ".join(dict.fromkeys(told[id(r)] for r in mine.values() if told[id(r)]))] if notes else []
            if by_shots:
                cells = [str(mine[k].numbers[main]) if k in mine else "" for k in shots]
                lines.append([name, *letter, *cells, *cost_cells([*mine.values()])])
                continue
            for k, r in mine.items():
                cells = [str(r.numbers[n]) if n in r.numbers else "" for n in names]
                lines.append(
                    [name, *([told[id(r)]] if notes else []), *_how_many(stream, shots, k), *cells, *cost_cells([r])]
                )
        head = [_told(k) for k in shots] if by_shots else [n.replace("_", " ") for n in names]
        head = [
            "method",
            *(["protocol"] if notes else []),
            *([] if by_shots else _how_many(stream, shots, "shots")),
            *head,
        ]
        title = f"{task} on {dataset}, {usual}" + (f": {main}" if by_shots else "")
        if stream:
            long = "" if stages is None else f" {stages} stage{'s' * (stages != 1)},"
            title = f"{task} on {dataset}, {kind.replace('_', '-')},{long} {usual}"
        made.append(Grid(title, [*head, *COST], lines, len(COST), len(names) - 1 if stream else 0, tuple(notes)))
    return made


def marked(some: Sequence[Row]) -> tuple[dict[int, str], list[str]]:
    """The letter of each row of a table, by its id, whose protocol is not that of most; what the letters mean."""
    notes = Notes(letters=True)
    texts = differing([facts(r.runs) for r in some])
    return {id(r): notes.mark(text) if text else "" for r, text in zip(some, texts, strict=True)}, notes.lines()


def _many(shots: int | None) -> float:
    return float("inf") if shots is None else shots


def _told(shots: int | None) -> str:
    return "all" if shots is None else f"{shots} shot{'s' * (shots != 1)}"


def _how_many(stream: bool, shots: Sequence[int | None], k: int | str | None) -> list[str]:
    """The cell of the column "shots", which a stream that shows all images has not."""
    return [] if stream and shots == [None] else [str(k or "all")]


def label(row: Row, usual: str) -> str:
    """A method, the backbone where it is not the usual one, what tells it apart, and * where an oracle chose."""
    name = row.method if row.backbone == usual else f"{row.method} on {row.backbone}"
    return name + (f" ({row.variant})" if row.variant else "") + "*" * row.oracle


def cost_cells(some: Sequence[Row]) -> list[str]:
    """The cells under COST; of several rows the longest run and the highest peak."""
    seeds = sorted({len(r.seeds) for r in some})
    n = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"
    seconds, memory = max(r.seconds for r in some), max(r.memory for r in some)
    most = max(some, key=lambda r: r.trained)
    share = "" if most.percent is None else f"{most.percent:.2g}" if most.percent < 1 else f"{most.percent:.1f}"
    return [n, f"{most.trained:,}", share, f"{seconds:.1f}", f"{memory:.0f}"]
