"""The score of a set of datasets in groups, such as VTAB-1k: accuracy per task, means of groups, and both means of all.

VTAB's score is the mean of the three group means; the mean of the 19 tasks is another number, and both are named so
that nobody mixes them.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlprompt.results.run_folder import Result
from vlprompt.results.tables.formats import as_data, markdown
from vlprompt.results.tables.summary import Cell, Grid, Seeds, flat_cells, mean_over

Groups = Mapping[str, Sequence[str]]  # group -> datasets
TASK = "vtab"
UNITS = (
    "percent, mean±standard deviation over n seeds; trained %: of the backbone's parameters; s: seconds a run, "
    "MB: peak memory, stored: bytes a task"
)
COST = ["n", "trained %", "s", "MB", "stored"]


@dataclass(frozen=True)
class Score:
    """One method over the tasks of a set; a group that lacks a task has no mean, nor has the whole.

    tasks: accuracy of each; of_groups, groups_mean (the set's score), tasks_mean: None where tasks are missing.
    several: tasks with runs of more than one setting, which are not counted.
    """

    set: str
    method: str
    backbone: str
    variant: str
    tasks: dict[str, Cell]
    of_groups: dict[str, Cell | None]
    groups_mean: Cell | None
    tasks_mean: Cell | None
    missing: dict[str, list[str]]
    several: list[str]
    n: tuple[int, ...]
    cost: dict[str, float | None]

    @property
    def name(self) -> str:
        return f"{self.method} ({self.variant})" if self.variant else self.method

    def flat(self) -> dict[str, Any]:
        """One level, for CSV and JSON."""
        cells = {**self.tasks, **{f"mean_{k}": c for k, c in self.of_groups.items()}}
        cells |= {"mean_of_group_means": self.groups_mean, f"mean_of_{_count(self)}_tasks": self.tasks_mean}
        numbers = flat_cells(cells)
        about = {"set": self.set, "method": self.method, "backbone": self.backbone, "variant": self.variant}
        lacks = {"missing": " ".join(t for some in self.missing.values() for t in some),
                 "several_settings": " ".join(self.several), "n": "-".join(map(str, self.n))}  # fmt: skip
        return about | numbers | lacks | self.cost


def _count(score: Score) -> int:
    return len(score.tasks) + sum(map(len, score.missing.values())) + len(score.several)


def _task(result: Result) -> str:
    return Path(str(result.config["task"].get("dataset"))).name


def _final(result: Result) -> bool:
    task = result.config["task"]
    return task["name"] == TASK and task.get("part") == "final"


def final_tasks(results: Sequence[Result]) -> set[str]:
    """The datasets that runs of the task vtab were tested on."""
    return {_task(r) for r in results if _final(r)}


def scores(results: Sequence[Result], name: str, groups: Groups) -> list[Score]:
    """One per method and backbone, of the final runs of the task vtab on datasets of this set.

    Learning rate and weight decay, and whatever else was searched, may differ from task to task. Where a task has runs
    of several settings, these are told apart by an argument that does so on all tasks.
    """
    datasets = {d for of_group in groups.values() for d in of_group}
    families: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if _final(result) and _task(result) in datasets:
            families.setdefault((result.config["method"]["name"], result.config["backbone"]), []).append(result)
    found = []
    for (method, backbone), members in sorted(families.items()):
        for variant, some in _variants(members).items():
            found.append(_score(name, groups, method, backbone, variant, some))
    return found


def _settings(result: Result) -> dict[str, str]:
    told = {f"{s}.{k}": v for s in ("method", "task", "train") for k, v in result.config[s].items()}
    told |= {f"look.{k}": v for k, v in (result.config.get("look") or {}).items()}
    told["images.test"] = result.protocol.get("test")
    return {k: json.dumps(v) for k, v in told.items() if k not in ("task.seed", "task.dataset")}


def _clear(members: Sequence[Result]) -> bool:
    """Whether each dataset has runs of one setting."""
    return len({(_task(r), str(_settings(r))) for r in members}) == len({_task(r) for r in members})


def _variants(members: list[Result]) -> dict[str, list[Result]]:
    """{what tells them apart: results}: by one argument, that with the fewest values, where one is enough."""
    if _clear(members):
        return {"": members}
    best: dict[str, list[Result]] = {}
    for key in sorted({k for r in members for k in _settings(r)} - {"train.lr", "train.weight_decay", "images.test"}):
        split: dict[str, list[Result]] = {}
        for r in members:
            split.setdefault(f"{key.partition('.')[2]}={_settings(r).get(key, '')}", []).append(r)
        if all(map(_clear, split.values())) and (not best or len(split) < len(best)):
            best = split
    return best or {"": members}


def _score(name: str, groups: Groups, method: str, backbone: str, variant: str, members: list[Result]) -> Score:
    by_task: dict[str, list[Result]] = {}
    for r in members:
        by_task.setdefault(_task(r), []).append(r)
    several = [task for task, some in by_task.items() if not _clear(some)]
    seeds = {task: {r.config["seed"]: r.summary["accuracy"] for r in some}
             for task, some in by_task.items() if task not in several}  # fmt: skip
    missing = {g: [t for t in of_group if t not in by_task] for g, of_group in groups.items()}
    means: dict[str, Cell | None] = {g: mean_over([seeds.get(t) for t in of_group]) for g, of_group in groups.items()}
    each = [[seeds.get(t) for t in of_group] for of_group in groups.values()]
    cost = {k: _over(members, k) for k in ("trained_percent", "trained_parameters", "seconds", "stored_bytes")}
    memory = max(r.cost["peak_memory_mb"] for r in members)
    return Score(
        name, method, backbone, variant,
        {t: cell for of_group in groups.values() for t in of_group if (cell := mean_over([seeds.get(t)])) is not None},
        means, _mean_of_means(each), mean_over([s for some in each for s in some]),
        {g: some for g, some in missing.items() if some}, several,
        tuple(sorted({len(s) for s in seeds.values()})), {**cost, "peak_memory_mb": memory},
    )  # fmt: skip


def _over(members: Sequence[Result], key: str) -> float | None:
    """The mean of a cost over runs; None where one does not say it."""
    told = [r.cost.get(key) for r in members]
    return None if None in told else statistics.fmean(v for v in told if v is not None)


def _mean_of_means(groups: Sequence[Sequence[Seeds | None]]) -> Cell | None:
    every = [t for of_group in groups for t in of_group]
    if not all(every):
        return None
    if len({frozenset(t) for t in every if t}) > 1:
        means = [cell.mean for of_group in groups if (cell := mean_over(of_group)) is not None]
        return Cell(statistics.fmean(means), 0.0, 1)
    seeds = next(t for t in every if t)
    return mean_over([{s: statistics.fmean(t[s] for t in of_group if t) for s in seeds} for of_group in groups])


def grids(found: Sequence[Score], name: str, groups: Groups) -> list[Grid]:
    """The score with means of groups and costs, then one table per group with its tasks."""
    told = lambda cell: "" if cell is None else str(cell)  # noqa: E731
    count = sum(map(len, groups.values()))
    label = {id(s): s.name if len({x.backbone for x in found}) == 1 else f"{s.name} on {s.backbone}" for s in found}
    head = ["method", *groups, "mean of group means", f"mean of {count} tasks", *COST]
    lines = [[label[id(s)], *map(told, s.of_groups.values()), told(s.groups_mean), told(s.tasks_mean), *_cost(s)]
             for s in found]  # fmt: skip
    made = [Grid(f"{name}, {found[0].backbone}: means of the groups", head, lines, len(COST))]
    for group, tasks in groups.items():
        lines = [[label[id(s)], *(told(s.tasks.get(t)) for t in tasks), told(s.of_groups[group])] for s in found]
        short = [t.removeprefix(f"{name}_") for t in tasks]
        made.append(Grid(f"{name}: {group}", ["method", *short, "mean"], lines, 0))
    return made


def turned(grid: Grid) -> Grid:
    """Rows as columns: narrower for few methods and many tasks."""
    columns = zip(grid.head, *grid.lines, strict=True)
    head, *lines = [list(c) for c in columns]
    return Grid(grid.title, ["", *head[1:]], lines, 0, notes=grid.notes)


def _cost(s: Score) -> list[str]:
    percent, seconds, memory, stored = (s.cost[k] for k in ("trained_percent", "seconds", "peak_memory_mb",
                                                            "stored_bytes"))  # fmt: skip
    n = f"{s.n[0]}-{s.n[-1]}" if len(s.n) > 1 else "".join(map(str, s.n))
    share = "" if percent is None else f"{percent:.2f}"
    return [n, share, f"{seconds:.1f}", f"{memory:.0f}", "" if stored is None else f"{stored:,.0f}"]


def lacking(found: Sequence[Score]) -> list[str]:
    """Sentences about what keeps a mean from being shown."""
    lack: dict[str, list[str]] = {}
    for s in found:
        for group, some in s.missing.items():
            lack.setdefault(f"{group} lacks {', '.join(some)}", []).append(s.name)
    said = [f"{', '.join(names)}: {what}" for what, names in lack.items()]
    several = "runs of several settings, or on other images, on {}; one folder of runs per search"
    return said + [f"{s.name}: {several.format(', '.join(s.several))}" for s in found if s.several]


def render(found: Sequence[Score], name: str, groups: Groups, form: str) -> str:
    """As "markdown", "csv" or "json"."""
    if form != "markdown":
        return as_data([score.flat() for score in found], form)
    said = "".join(f"\n{line}\n" for line in lacking(found))
    return markdown(grids(found, name, groups), UNITS) + said
