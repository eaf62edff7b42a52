"""Figures of the loss over the training steps."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlprompt.results.plots.figure import Figure, make_figure_name
from vlprompt.results.plots.lines import (
    Line,
    add_letters,
    build_line_figure,
    describe_group,
    group_for_figures,
    label_rows,
)
from vlprompt.results.plots.shots import format_seed_count, get_line_style
from vlprompt.results.run_folder import Result, RunFolder
from vlprompt.results.tables.formats import Table
from vlprompt.results.tables.summary import ResultRow

MAX_POINTS = 500
STEP_KEYS = ("stage", "epoch", "step", "lr")  # of a line of steps.jsonl; the others are terms of the loss
Losses = dict[str, dict[int, float]]  # term -> step -> value


def read_losses(result: Result) -> Losses:
    """Read the terms of the loss from a run's steps.jsonl; {} without one. A line that is no JSON is left out."""
    path = RunFolder(Path(result.folder)).steps_path if result.folder else None
    losses: Losses = {}
    if path is None or not path.exists():
        return losses
    for text in path.read_text("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
            step = int(line["step"])
        except (ValueError, KeyError, TypeError):
            continue
        for name, value in line.items():
            if name not in STEP_KEYS and isinstance(value, int | float):
                losses.setdefault(name, {})[step] = float(value)
    return losses


def thin(steps: Sequence[int], values: Sequence[float], n: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """Return at most n points, each the mean of as many neighbours."""
    width = -(-len(steps) // n) or 1
    starts = range(0, len(steps), width)
    return [statistics.fmean(steps[i : i + width]) for i in starts], [
        statistics.fmean(values[i : i + width]) for i in starts
    ]


def build_learning_figures(rows: Sequence[ResultRow]) -> list[Figure]:
    """Build the terms of the loss over the steps, mean over seeds, for each task, dataset and number of shots."""
    return [figure for group in group_for_figures(rows) if (figure := _build_learning_figure(group))]


def _build_learning_figure(rows: Sequence[ResultRow]) -> Figure | None:
    labels, letters, notes = label_rows(rows)
    lines, widths = list[Line](), set[int]()
    for row in rows:
        runs = [losses for run in row.runs if (losses := read_losses(run))]
        names = list(dict.fromkeys(name for losses in runs for name in losses))
        for name in names:
            having = [losses[name] for losses in runs if name in losses]
            steps = sorted(set.intersection(*map(set, having)))
            if not steps:
                continue
            x, mean = thin(steps, [statistics.fmean(values[s] for values in having) for s in steps])
            widths.add(-(-len(steps) // MAX_POINTS))
            label = add_letters(f"{labels[id(row)]}: {name}", [letters[id(row)]])
            style = {k: v for k, v in get_line_style(len(lines)).items() if k != "marker"}
            lines.append(Line(label, x, mean, style=style))
    if not lines:
        return None
    if max(widths) > 1:
        notes = [*notes, f"a point is the mean of up to {max(widths)} steps"]
    parts = describe_group(rows)
    figure = build_line_figure(
        make_figure_name("learning", *parts),
        f"{', '.join(parts)}: loss, mean over {format_seed_count(rows)}",
        "Terms of the loss over the training steps that all seeds have; terms of different methods do not compare.",
        lines,
        "step",
        "loss",
        notes,
    )
    return replace(figure, table=_make_loss_table(figure.title, lines, notes))


def _make_loss_table(title: str, lines: Sequence[Line], notes: Sequence[str]) -> Table:
    """Return first, lowest and last value of each line: a column per step would be too many."""
    cells = [
        [line.label, str(len(line.x)), *(f"{v:.4g}" for v in (line.mean[0], min(line.mean), line.mean[-1]))]
        for line in lines
    ]
    return Table(title, ["loss", "points", "first", "lowest", "last"], cells, footnotes=tuple(notes))
