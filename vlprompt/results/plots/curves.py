"""Figures over time: the loss over steps, streams over their lessons, pseudo-labels over epochs."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlprompt.results.comparability import CONTINUAL, DOMAIN
from vlprompt.results.plots.accuracy import ZERO_SHOT_STYLE
from vlprompt.results.plots.continual import average_accuracy_matrix, compute_curve, format_continual_title
from vlprompt.results.plots.domains import CURVES, average_over_epochs, collect_pseudo_label_panels
from vlprompt.results.plots.figure import Figure, make_figure_name
from vlprompt.results.plots.interactive import make_heatmap, make_layout
from vlprompt.results.plots.lines import (
    Line,
    add_letters,
    build_line_figure,
    describe_group,
    group_for_figures,
    label_rows,
)
from vlprompt.results.plots.shots import build_colormap, format_seed_count, get_line_style, list_shades
from vlprompt.results.run_folder import Result, RunFolder
from vlprompt.results.tables.domains import ORACLE_NOTE
from vlprompt.results.tables.formats import Table
from vlprompt.results.tables.summary import ResultRow, group_by_table

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


def build_stage_figures(rows: Sequence[ResultRow]) -> list[Figure]:
    """Build accuracy on all classes seen so far after each lesson, for each stream; joint training as a level."""
    tables = group_by_table(r for r in rows if r.task == CONTINUAL)
    return [_build_stage_figure(table) for table in tables if any(len(compute_curve(r)) > 1 for r in table)]


def _build_stage_figure(rows: Sequence[ResultRow]) -> Figure:
    labels, letters, notes = label_rows(rows)
    lines, n_methods = list[Line](), 0
    for row in rows:
        curve = compute_curve(row)
        if not curve:
            continue
        is_reference = row.method == "zero_shot" or len(curve) == 1
        style = get_line_style(n_methods)
        if is_reference:
            style = ZERO_SHOT_STYLE if row.method == "zero_shot" else {"color": "#222222", "linestyle": "-."}
        n_methods += not is_reference
        mean, std = zip(*curve, strict=True)
        x, n = range(1, len(curve) + 1), [len(row.runs)] * len(curve)
        label = add_letters(labels[id(row)], [letters[id(row)]])
        lines.append(Line(label, x, mean, std, n, style, is_reference))
    first = rows[0]
    return build_line_figure(
        make_figure_name("stages", first.dataset, first.kind, str(first.stages or "")),
        f"{format_continual_title(first)}: mean and spread over {format_seed_count(rows)}",
        "Accuracy on all test images seen so far after each lesson, a line per method.",
        lines,
        "lessons learned",
        "accuracy on all seen, %",
        notes,
    )


def build_matrix_figures(rows: Sequence[ResultRow]) -> list[Figure]:
    """Build the accuracy on the test of each lesson (column) after each lesson (row), a figure per method."""
    figures = list[Figure]()
    for table in group_by_table(r for r in rows if r.task == CONTINUAL):
        labels, letters, notes = label_rows(table)
        for row in table:
            if matrix := average_accuracy_matrix(row):
                letter = letters[id(row)]
                title = f"{add_letters(labels[id(row)], [letter])}: {format_continual_title(row)}"
                name = make_figure_name("matrix", labels[id(row)], row.dataset, row.kind, str(row.stages or ""))
                own_notes = [note for note in notes if letter and note.startswith(f"{letter}: ")]
                figures.append(_build_matrix(name, title, matrix, own_notes))
    return figures


def _build_matrix(name: str, title: str, matrix: Sequence[Sequence[float]], notes: Sequence[str]) -> Figure:
    width = max(map(len, matrix))
    cells: list[list[float | None]] = [[*line, *[None] * (width - len(line))] for line in matrix]
    columns, rows = ([str(i + 1) for i in range(n)] for n in (width, len(matrix)))
    layout = make_layout("test of lesson", "after lesson")
    interactive = make_heatmap(
        cells,
        columns,
        rows,
        layout,
        zmin=0,
        zmax=100,
        colorscale=list_shades(0.6, 0.85),
        hovertemplate="after lesson %{y}, test of lesson %{x}: %{z:.1f} %<extra></extra>",
    )

    def draw(axes: Any) -> None:
        values = [[float("nan") if v is None else v for v in line] for line in cells]
        image = axes.imshow(values, cmap=build_colormap(0.6, 0.85), vmin=0, vmax=100)
        step_x, step_y = -(-width // 15), -(-len(rows) // 15)
        axes.set_xticks(range(0, width, step_x), columns[::step_x])
        axes.set_yticks(range(0, len(rows), step_y), rows[::step_y])
        for y, line in enumerate(matrix if max(width, len(rows)) <= 15 else []):
            for x, value in enumerate(line):
                colour = "white" if value > 70 else "black"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set(xlabel="test of lesson", ylabel="after lesson")
        axes.set_title(title, fontsize=9)
        axes.figure.colorbar(image, ax=axes, label="accuracy, %", fraction=0.046)

    texts = [[row, *("" if v is None else f"{v:.1f}" for v in line)] for row, line in zip(rows, cells, strict=True)]
    table = Table(title, ["after lesson", *columns], texts, footnotes=tuple(notes))
    text = " ".join(["Accuracy on the test of each lesson after each lesson, mean over seeds.", *notes])
    return Figure(name, title, text, draw, interactive, table, (5.4, 4.6))


def build_pseudo_label_figures(rows: Sequence[ResultRow]) -> list[Figure]:
    """Build pseudo-labelled, right and accuracy over the epochs, for each method and pair of domains."""
    figures = list[Figure]()
    for title, members in collect_pseudo_label_panels([r for r in rows if r.task == DOMAIN]):
        lines = list[Line]()
        for key, (label, colour, marker) in CURVES.items():
            mean, std = average_over_epochs(members, key)
            n = [len({run.config["seed"] for row in members for run in row.runs})] * len(mean)
            style = {"color": colour, "marker": marker}
            if mean:
                lines.append(Line(label, range(1, len(mean) + 1), mean, std, n, style))
        zero_shot = [run.summary["zero_shot"] for row in members for run in row.runs if "zero_shot" in run.summary]
        if zero_shot:
            level = [statistics.fmean(zero_shot)]
            lines.append(Line("zero-shot accuracy", [1], level, style=ZERO_SHOT_STYLE, is_reference=True))
        text = " ".join(title.split())
        notes = [ORACLE_NOTE] if any(row.is_oracle for row in members) else []
        figures.append(
            build_line_figure(
                make_figure_name("pseudo", text),
                f"{text}: mean and spread over {format_seed_count(members)}",
                "Target images with a pseudo-label, how many of these are right, and the accuracy, over the epochs.",
                lines,
                "epoch",
                "target images, %",
                notes,
            )
        )
    return figures
