"""Which runs a report shows in detail."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from vlprompt.results.run_folder import Result
from vlprompt.results.tables.summary import ResultRow, find_usual_backbone, format_label, group_by_table

MAX_DETAILED_RUNS = 16  # whose answers are drawn and whose mistakes are shown, so that the page stays small
MAX_LEARNED_RUNS = 8  # whose prompts are looked at, which takes seconds each


@dataclass(frozen=True)
class DetailedRun:
    """A run that is the best of its method on its dataset."""

    label: str
    result: Result
    value: float


def choose_detailed_runs(rows: Sequence[ResultRow]) -> tuple[list[DetailedRun], int]:
    """Choose the best run of each method on each dataset, the best of the datasets first.

    Returns:
        At most `MAX_DETAILED_RUNS`, and how many were left out.
    """
    best: dict[tuple[str, str, str, str], DetailedRun] = {}
    backbone = find_usual_backbone(rows)
    for row in rows:
        for run in row.runs:
            value = run.summary.get(row.main_metric)
            key = row.task, row.dataset, row.kind, row.method
            if value is not None and (key not in best or value > best[key].value):
                seed = f"seed {run.config['seed']}"
                label = ", ".join([format_label(row, backbone), f"{row.task} on {row.dataset}", seed])
                best[key] = DetailedRun(label, run, value)
    ranked: list[tuple[int, int, DetailedRun]] = []
    for number, (_, group) in enumerate(groupby(sorted(best), key=lambda key: key[:3])):
        runs = sorted((best[key] for key in group), key=lambda run: -run.value)
        ranked += [(rank, number, run) for rank, run in enumerate(runs)]
    ranked.sort(key=lambda one: one[:2])
    return [run for *_, run in ranked[:MAX_DETAILED_RUNS]], max(0, len(ranked) - MAX_DETAILED_RUNS)


def choose_most_shots(rows: Sequence[ResultRow]) -> list[Result]:
    """Return of each table the runs with the most shots; all images are more than any number."""
    chosen = list[Result]()
    for table in group_by_table(rows):
        shots = [math.inf if row.shots is None else row.shots for row in table]
        chosen += [run for row, n in zip(table, shots, strict=True) if n == max(shots) for run in row.runs]
    return chosen


def choose_learned_runs(detailed: Sequence[DetailedRun]) -> tuple[list[DetailedRun], int]:
    """Choose of the detailed runs that of each method and task that stands first, and learned something.

    Returns:
        At most `MAX_LEARNED_RUNS`, and how many were left out.
    """
    first: dict[tuple[str, str], DetailedRun] = {}
    for run in detailed:
        if run.result.cost["trained_parameters"]:
            config = run.result.config
            first.setdefault((config["task"]["name"], config["method"]["name"]), run)
    runs = [*first.values()]
    return runs[:MAX_LEARNED_RUNS], max(0, len(runs) - MAX_LEARNED_RUNS)


def describe_choice(detailed: Sequence[DetailedRun], n_left: int) -> str:
    """Return in one sentence which runs are shown."""
    text = "Of each method on each dataset the run that is best by the main metric on the test items"
    return f"{text}; the first {len(detailed)}, {n_left} more are not shown." if n_left else f"{text}."
