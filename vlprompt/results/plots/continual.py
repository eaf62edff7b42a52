"""Figures of streams: accuracy over the lessons, accuracy matrices, and the usage of the prompts of a pool."""

import statistics
from collections.abc import Sequence
from typing import Any

from vlprompt.results.comparability import CONTINUAL
from vlprompt.results.plots.accuracy import ZERO_SHOT_STYLE
from vlprompt.results.plots.figure import Figure, make_figure_name
from vlprompt.results.plots.interactive import make_heatmap, make_layout
from vlprompt.results.plots.lines import Line, add_letters, build_line_figure, label_rows
from vlprompt.results.plots.shots import build_colormap, format_seed_count, get_line_style, list_shades
from vlprompt.results.tables.formats import Table
from vlprompt.results.tables.summary import ResultRow, group_by_table

MAX_LABELLED_LESSONS = 15  # above which the cells of a matrix have no room for numbers
JOINT_COLOUR = "#808080"  # readable on white and on black


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
            style = ZERO_SHOT_STYLE if row.method == "zero_shot" else {"color": JOINT_COLOUR, "linestyle": "-."}
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
        colorbar={"title": {"text": "accuracy, %", "side": "right"}},
        **({"texttemplate": "%{z:.0f}"} if max(width, len(rows)) <= MAX_LABELLED_LESSONS else {}),
        hovertemplate="after lesson %{y}, test of lesson %{x}: %{z:.1f} %<extra></extra>",
    )

    def draw(axes: Any) -> None:
        values = [[float("nan") if v is None else v for v in line] for line in cells]
        image = axes.imshow(values, cmap=build_colormap(0.6, 0.85), vmin=0, vmax=100)
        _set_ticks(axes, columns, rows)
        for y, line in enumerate(matrix if max(width, len(rows)) <= MAX_LABELLED_LESSONS else []):
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


def build_prompt_figures(rows: Sequence[ResultRow]) -> list[Figure]:
    """Build the share of each prompt of a pool (column) in the answers to each lesson's test (row) after the last one.

    For the first seed. It is no mean over seeds: the same number is another prompt under another seed.
    """
    figures = list[Figure]()
    for table in group_by_table(r for r in rows if r.task == CONTINUAL):
        labels, letters, _ = label_rows(table)
        for row in table:
            if usage := _get_prompt_usage(row):
                label = add_letters(labels[id(row)], [letters[id(row)]])
                title = f"{label}, seed {row.runs[0].config['seed']}: {format_continual_title(row)}"
                name = make_figure_name("prompts", labels[id(row)], row.dataset, row.kind, str(row.stages or ""))
                figures.append(_build_usage(name, title, [[100 * share for share in line] for line in usage]))
    return figures


def _build_usage(name: str, title: str, percent: Sequence[Sequence[float]]) -> Figure:
    columns, rows = ([str(i + 1) for i in range(n)] for n in (len(percent[0]), len(percent)))
    highest = max(map(max, percent))
    interactive = make_heatmap(
        percent,
        columns,
        rows,
        make_layout("prompt", "test of lesson"),
        zmin=0,
        zmax=highest,
        colorscale=list_shades(0.3, 0.6),
        colorbar={"title": {"text": "share of a lesson's choices, %", "side": "right"}},
        hovertemplate="test of lesson %{y}, prompt %{x}: %{z:.1f} %<extra></extra>",
    )

    def draw(axes: Any) -> None:
        image = axes.imshow(percent, cmap=build_colormap(0.3, 0.6), vmin=0, vmax=highest, aspect="auto")
        _set_ticks(axes, columns, rows)
        axes.set(xlabel="prompt", ylabel="test of lesson")
        axes.set_title(title, fontsize=9)
        axes.figure.colorbar(image, ax=axes, label="share of a lesson's choices, %", fraction=0.046)

    cells = [[row, *(f"{v:.1f}" for v in line)] for row, line in zip(rows, percent, strict=True)]
    table = Table(title, ["test of lesson", *columns], cells)
    text = "Share of each prompt of the pool in the choices of each lesson's test images, in percent."
    return Figure(name, title, text, draw, interactive, table, (5.4, 4.0))


def _set_ticks(axes: Any, columns: Sequence[str], rows: Sequence[str], n_ticks: int = 15) -> None:
    for names, set_ticks in ((columns, axes.set_xticks), (rows, axes.set_yticks)):
        step = -(-len(names) // n_ticks)
        set_ticks(range(0, len(names), step), names[::step])


def format_continual_title(row: ResultRow) -> str:
    stages = "" if row.stages is None else f", {row.stages} stages"
    return f"{row.dataset}, {row.kind.replace('_', '-')}{stages}"


def compute_curve(row: ResultRow) -> list[tuple[float, float]]:
    """Return mean and deviation over seeds of the accuracy on all classes seen, after each lesson."""
    by_run = [[tests["seen"]["accuracy"] for tests in r.scores if "seen" in tests] for r in row.runs]
    return [(statistics.fmean(values), statistics.pstdev(values)) for values in zip(*by_run, strict=False)]


def average_accuracy_matrix(row: ResultRow) -> list[list[float]]:
    """Average the accuracy matrix over seeds; empty if there is no more than one test."""
    by_run = [r.accuracy_matrix for r in row.runs]
    matrix = [[statistics.fmean(v) for v in zip(*lines, strict=False)] for lines in zip(*by_run, strict=False)]
    return matrix if len(matrix) > 1 and len(matrix[-1]) > 1 else []


def _get_prompt_usage(row: ResultRow) -> list[list[float]]:
    """Return the fraction of each prompt (T, M) after the last lesson of the first seed; empty without a pool."""
    usage = row.runs[0].stages[-1].get("prompt_usage", {}) if row.runs[0].stages else {}
    lessons = [fractions for name, fractions in usage.items() if name.startswith("seen/")]
    return lessons or [usage[name] for name in ("seen",) if name in usage]
