"""Tables over runs: mean and spread over seeds, to the terminal, Markdown, CSV and JSON."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlprompt.metrics import harmonic_mean
from vlprompt.results.folder import Result

MAIN = {
    "few_shot": "accuracy",
    "base_to_new": "harmonic",
}  # the number that a task is judged by; others: the first of the summary
UNITS = "accuracies in percent, mean ± standard deviation over seeds (divided by n, as the literature has it)"


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation (divided by n) of a number over n seeds."""

    mean: float
    spread: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.spread:.1f}" if self.n > 1 else f"{self.mean:.1f}"


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
    seconds: float
    memory: float

    def flat(self) -> dict[str, Any]:
        """One level, for CSV and JSON."""
        scores = {
            f"{k}{end}": value for k, c in self.numbers.items() for end, value in (("", c.mean), ("_sd", c.spread))
        }
        return {"task": self.task, "dataset": self.dataset, "backbone": self.backbone, "method": self.method, "variant": self.variant,
                "shots": self.shots, "n": len(self.seeds), **scores, "trained_parameters": self.trained, "seconds": self.seconds,
                "peak_memory_mb": self.memory}  # fmt: skip


def _same(result: Result) -> str:
    """What runs that differ only by their seed have in common."""
    config = json.loads(json.dumps(result.config))
    config.pop("seed")
    config["task"].pop("seed", None)
    return json.dumps(config, sort_keys=True)


def _variants(results: Sequence[Result]) -> dict[str, str]:
    """For each configuration, the settings in which it differs from others of its method, dataset, task, backbone and shots."""
    families: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for r in results:
        c = r.config
        family = (
            c["method"]["name"],
            c["backbone"],
            c["task"]["name"],
            str(c["task"].get("dataset")),
            str(c["task"].get("shots")),
        )
        told = {
            f"{s}.{k}": v
            for s in ("method", "task", "train")
            for k, v in c[s].items()
            if k not in ("name", "seed", "dataset", "shots")
        }
        families.setdefault(family, {})[_same(r)] = told
    found = {}
    for members in families.values():
        keys = {k for told in members.values() for k in told}
        differ = sorted(k for k in keys if len({json.dumps(told.get(k)) for told in members.values()}) > 1)
        for same, told in members.items():
            found[same] = ", ".join(f"{k.partition('.')[2]}={_short(told.get(k))}" for k in differ)
    return found


def _short(value: Any) -> str:
    return (
        "".join(map(str, value))
        if isinstance(value, list) and all(len(str(v)) == 1 for v in value)
        else "default"
        if value is None
        else str(value)
    )


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
        found.append(Row(config["method"]["name"], config["backbone"], str(config["task"].get("dataset")), config["task"]["name"],
                         config["task"].get("shots"), variants[same], tuple(sorted(r.config["seed"] for r in members)), numbers,
                         int(members[0].cost["trained_parameters"]), cost["seconds"], cost["peak_memory_mb"]))  # fmt: skip
    order = {"zero_shot": -1}
    return sorted(
        found, key=lambda r: (r.task, r.dataset, order.get(r.method, 0), r.backbone, r.method, r.variant, r.shots or 0)
    )


def grids(found: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Per task and dataset: a title, a head and lines. Tasks with one number spread their shots over the columns."""
    made = []
    for task, dataset in dict.fromkeys((r.task, r.dataset) for r in found):
        some = [r for r in found if (r.task, r.dataset) == (task, dataset)]
        title = f"{task} on {dataset}"
        main = MAIN.get(task, next(iter(some[0].numbers)))
        if main == "accuracy" and len({r.shots for r in some}) > 1:
            shots = sorted({r.shots for r in some}, key=lambda k: k or 10**9)
            head = [
                "method",
                "backbone",
                *(f"{k or 'all'} shot{'s' * (k != 1)}" for k in shots),
                "n",
                "trained",
                "seconds",
                "MB",
            ]
            lines = []
            for kind in dict.fromkeys((r.method, r.backbone, r.variant) for r in some):
                mine = {r.shots: r for r in some if (r.method, r.backbone, r.variant) == kind}
                lines.append(
                    [
                        _label(kind[0], kind[2]),
                        kind[1],
                        *(str(mine[k].numbers[main]) if k in mine else "" for k in shots),
                        *_cost([*mine.values()]),
                    ]
                )
        else:
            names = [k for k in some[0].numbers if task != "few_shot" or k != "calibration_error"]
            head = ["method", "backbone", "shots", *names, "n", "trained", "seconds", "MB"]
            lines = [
                [
                    _label(r.method, r.variant),
                    r.backbone,
                    str(r.shots or "all"),
                    *(str(r.numbers[k]) for k in names),
                    *_cost([r]),
                ]
                for r in some
            ]
        made.append((title, head, lines))
    return made


def _label(method: str, variant: str) -> str:
    return f"{method} ({variant})" if variant else method


def _cost(some: Sequence[Row]) -> list[str]:
    n = sorted({len(r.seeds) for r in some})
    return ["-".join(map(str, dict.fromkeys((n[0], n[-1])))), f"{max(r.trained for r in some):,}", f"{max(r.seconds for r in some):.1f}",
            f"{max(r.memory for r in some):.0f}"]  # fmt: skip


def render(found: Sequence[Row], form: str) -> str:
    """As "markdown", "csv" or "json"."""
    if form == "markdown":
        parts = [f"**{title}** ({UNITS})\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])
                 for title, head, lines in grids(found)]  # fmt: skip
        return "\n\n".join(parts) + "\n"
    flat = [row.flat() for row in found]
    if form == "json":
        return json.dumps(flat, indent=1) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in flat for k in row)))
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
