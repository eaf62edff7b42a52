"""Figures of streams: accuracy over the lessons, accuracy matrices, and the usage of the prompts of a pool."""

import math
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from vlprompt.results.plots.shots import build_colormap, create_panels, format_seed_count, get_line_style, load_pyplot
from vlprompt.results.tables.summary import ResultRow, format_label, group_by_table

JOINT_COLOUR, ZERO_SHOT_COLOUR = "#222222", "#777777"
MAX_LABELLED_LESSONS = 10  # lessons, above which a matrix has no room for its numbers


def iter_continual_figures(rows: Sequence[ResultRow]) -> Iterator[tuple[str, Any]]:
    """Yield the file name and figure of every plot that there are results for."""
    if any(len(compute_curve(r)) > 1 for r in rows):
        yield "stages.png", plot_stages(rows)
    if any(map(average_accuracy_matrix, rows)):
        yield "matrix.png", plot_accuracy_matrices(rows)
    if any(map(_get_prompt_usage, rows)):
        yield "prompts.png", plot_prompt_usage(rows)


def require_curves(rows: Sequence[ResultRow]) -> None:
    """Raise a ValueError without a stream of two lessons or more."""
    if not any(len(compute_curve(r)) > 1 for r in rows):
        raise ValueError(
            "plot: expected streams of at least two lessons, got none. "
            "Make some by `vlprompt run nearest_mean digits --task continual --seed 1,2,3`."
        )


def plot_stages(rows: Sequence[ResultRow]) -> Any:
    """Plot accuracy on all test images seen so far over the lessons, a line per method with its deviation over seeds.

    Zero-shot is dashed; joint training, which has one lesson, a dashed horizontal line.

    Raises:
        ValueError: without a stream of two lessons or more.
    """
    plt = load_pyplot()
    require_curves(rows)
    tables = [table for table in group_by_table(rows) if any(len(compute_curve(r)) > 1 for r in table)]
    figure, axes = plt.subplots(len(tables), 1, figsize=(7.6, 4.4 * len(tables)), squeeze=False, layout="constrained")
    for axis, table in zip(axes[:, 0], tables, strict=True):
        _draw_curves(axis, table)
        n_lessons = max(len(compute_curve(r)) for r in table)
        axis.set_xticks(range(1, n_lessons + 1, -(-n_lessons // 12)))
        axis.set_xlabel("lessons learned")
        axis.set_ylabel("accuracy on all test images seen so far, %")
        title = f"{format_continual_title(table[0])}: mean and spread over {format_seed_count(table)}"
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _draw_curves(axis: Any, rows: Sequence[ResultRow]) -> None:
    """Draw methods with error bars, then the references: zero-shot, and joint training as an upper bound."""
    with_backbone = len({r.backbone for r in rows}) > 1
    methods = [r for r in rows if len(compute_curve(r)) > 1 and r.method != "zero_shot"]
    for i, row in enumerate(methods):
        mean, std = zip(*compute_curve(row), strict=True)
        style = {**get_line_style(i), "markersize": 4, "capsize": 2}
        axis.errorbar(range(1, len(mean) + 1), mean, std, label=_format_row_label(row, with_backbone), **style)
    references = [r for r in rows if r not in methods]
    bounds = [r for r in references if r.method != "zero_shot"]
    for row in references:
        mean, style = [m for m, _ in compute_curve(row)], {"color": ZERO_SHOT_COLOUR, "linestyle": "--"}
        if row in bounds:
            style = {"color": JOINT_COLOUR, "linestyle": ("--", "-.", ":")[bounds.index(row) % 3]}
        label = _format_row_label(row, with_backbone)
        if len(mean) > 1:
            axis.plot(range(1, len(mean) + 1), mean, linewidth=1.2, label=label, **style)
        elif mean:
            axis.axhline(mean[0], linewidth=1.2, label=label, **style)


def plot_accuracy_matrices(rows: Sequence[ResultRow]) -> Any:
    """Plot the accuracy matrix (T, T) of every method, mean over seeds: after a lesson (row) on each test (column)."""
    plt = load_pyplot()
    panels = [(r, matrix) for r in rows if (matrix := average_accuracy_matrix(r))]
    if not panels:
        raise ValueError(
            "plot: expected streams with a test of each lesson for an accuracy matrix, got none. "
            "Make some by `vlprompt run nearest_mean digits --task continual --seed 1,2,3`."
        )
    with_backbone, with_table = _needs_backbone_and_table([r for r, _ in panels])
    figure, axes = create_panels(plt, len(panels))
    image = None
    for axis, (row, matrix) in zip(axes, panels, strict=False):
        height, width = len(matrix), max(map(len, matrix))
        cells = [[*line, *[math.nan] * (width - len(line))] for line in matrix]
        image = axis.imshow(cells, cmap=build_colormap(0.6, 0.85), vmin=0, vmax=100)
        if max(height, width) <= MAX_LABELLED_LESSONS:
            _write_numbers(axis, matrix)
        _set_ticks(axis, width, height)
        _label_axes(axis, row, "test of lesson", "after lesson", with_backbone, with_table)
    figure.colorbar(image, ax=axes, label="accuracy, %", fraction=0.04, aspect=30)
    return figure


def _write_numbers(axis: Any, matrix: Sequence[Sequence[float]]) -> None:
    size = 8 if len(matrix) <= 6 else 6.5
    for t, line in enumerate(matrix):
        for i, value in enumerate(line):
            colour = "white" if value > 70 else "black"
            axis.text(i, t, f"{value:.0f}", ha="center", va="center", fontsize=size, color=colour)


def _needs_backbone_and_table(rows: Sequence[ResultRow]) -> tuple[bool, bool]:
    """Whether titles of panels name the backbone, and the table: only where there are several."""
    return len({r.backbone for r in rows}) > 1, len({r.table_key for r in rows}) > 1


def plot_prompt_usage(rows: Sequence[ResultRow]) -> Any:
    """Plot how often the test images of each lesson take each prompt of a pool after the last lesson.

    For the first seed. It is no mean over seeds: the same number is another prompt under another seed.
    """
    plt = load_pyplot()
    panels = [(r, usage) for r in rows if (usage := _get_prompt_usage(r))]
    if not panels:
        raise ValueError(
            "plot: expected a run with a pool of prompts, got none. Make one by `vlprompt run l2p digits --task "
            "continual`."
        )
    with_backbone, with_table = _needs_backbone_and_table([r for r, _ in panels])
    figure, axes = create_panels(plt, len(panels))
    maximum = 100 * max(max(line) for _, usage in panels for line in usage)
    image = None
    for axis, (row, usage) in zip(axes, panels, strict=False):
        percent = [[100 * fraction for fraction in line] for line in usage]
        image = axis.imshow(percent, cmap=build_colormap(0.3, 0.6), vmin=0, vmax=maximum, aspect="auto")
        _set_ticks(axis, len(usage[0]), len(usage))
        suffix = f", seed {row.runs[0].config['seed']}"
        _label_axes(axis, row, "prompt", "test of lesson", with_backbone, with_table, suffix)
    figure.colorbar(image, ax=axes, label="share of a lesson's choices, %", fraction=0.04, aspect=30)
    return figure


def _set_ticks(axis: Any, n_columns: int, n_rows: int) -> None:
    """Set ticks that count from 1, twelve at most."""
    for count, set_ticks in ((n_columns, axis.set_xticks), (n_rows, axis.set_yticks)):
        step = -(-count // 12)
        set_ticks(range(0, count, step), [str(i + 1) for i in range(0, count, step)], fontsize=7)


def _label_axes(
    axis: Any, row: ResultRow, x: str, y: str, with_backbone: bool, with_table: bool, suffix: str = ""
) -> None:
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    table = f"\n{format_continual_title(row)}" if with_table else ""
    axis.set_title(f"{_format_row_label(row, with_backbone)}{suffix}{table}", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _format_row_label(row: ResultRow, with_backbone: bool) -> str:
    return textwrap.fill(format_label(row, "" if with_backbone else row.backbone), 32)


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
