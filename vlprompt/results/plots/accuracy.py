"""Figures of accuracy: over shots, base against new classes, and methods over datasets as bars or on a radar."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlprompt.results.comparability import CONTINUAL, DOMAIN, Footnotes
from vlprompt.results.plots.figure import Figure, make_figure_name
from vlprompt.results.plots.interactive import LEGEND, REFERENCE_COLOUR, clean_numbers, escape, make_layout, make_trace
from vlprompt.results.plots.lines import (
    Line,
    add_letters,
    build_line_figure,
    finish_axes,
    format_shots,
    label_rows,
    write_notes,
)
from vlprompt.results.plots.shots import COLOURS, format_seed_count, get_line_style, has_shots_curve
from vlprompt.results.tables.formats import Table
from vlprompt.results.tables.summary import MeanStd, ResultRow, format_label, group_by_table

ZERO_SHOT_STYLE = {"color": REFERENCE_COLOUR, "linestyle": "--"}
MIN_RADAR_DATASETS = 3


def build_shots_figures(rows: Sequence[ResultRow], n_shots: int = 2) -> list[Figure]:
    """Build accuracy over shots for each task and dataset; zero-shot dashed.

    Args:
        rows: of all tasks.
        n_shots: how many numbers of shots there must be at least.
    """
    tables = [[r for r in table if has_shots_curve(r)] for table in group_by_table(rows)]
    return [_build_shots_figure(table) for table in tables if len({r.shots for r in table}) >= n_shots]


def _build_shots_figure(rows: Sequence[ResultRow]) -> Figure:
    labels, letters, notes = label_rows(rows)
    groups, lines, n_methods = dict[str, list[ResultRow]](), list[Line](), 0
    for row in sorted(rows, key=lambda r: r.shots or 0):
        groups.setdefault(labels[id(row)], []).append(row)
    for label in dict.fromkeys(labels[id(r)] for r in rows):
        group = groups[label]
        stats, text = [r.metrics["accuracy"] for r in group], add_letters(label, [letters[id(r)] for r in group])
        is_reference = group[0].method == "zero_shot"
        style = ZERO_SHOT_STYLE if is_reference else get_line_style(n_methods)
        n_methods += not is_reference
        values = [s.mean for s in stats], [s.std for s in stats], [s.n for s in stats]
        lines.append(Line(text, [r.shots or 0 for r in group], *values, style, is_reference))
    title = f"{rows[0].task} on {rows[0].dataset}: mean and spread over {format_seed_count(rows)}"
    ticks = sorted({r.shots for r in rows if r.shots})
    return build_line_figure(
        make_figure_name("shots", rows[0].task, rows[0].dataset),
        title,
        f"Accuracy over training images per class on {rows[0].dataset}, a line per method.",
        lines,
        "training images per class",
        "accuracy on the test split, %",
        notes,
        ticks,
    )


def build_base_new_figures(rows: Sequence[ResultRow]) -> list[Figure]:
    """Build the accuracy on new classes against that on base classes, a point per method, for each dataset."""
    tables = [[r for r in table if {"base", "new"} <= set(r.metrics)] for table in group_by_table(rows)]
    return [_build_base_new_figure(table) for table in tables if table]


def _build_base_new_figure(rows: Sequence[ResultRow]) -> Figure:
    labels, letters, notes = label_rows(rows)
    with_shots = len({r.shots for r in rows}) > 1
    points, data = list[tuple[str, MeanStd, MeanStd]](), list[dict[str, Any]]()
    for i, row in enumerate(rows):
        label = add_letters(labels[id(row)] + f", {format_shots(row.shots)}" * with_shots, [letters[id(row)]])
        base, new = row.metrics["base"], row.metrics["new"]
        points.append((label, base, new))
        trace = make_trace(label, "scatter", x=clean_numbers([base.mean]), y=clean_numbers([new.mean]), mode="markers")
        trace["marker"] = {"size": 10, "color": COLOURS[i % len(COLOURS)]}
        trace["error_x"] = {"type": "data", "array": clean_numbers([base.std])}
        trace["error_y"] = {"type": "data", "array": clean_numbers([new.std])}
        trace["hovertemplate"] = "%{fullData.name}<br>base %{x:.1f} %, new %{y:.1f} %" + f", n={base.n}<extra></extra>"
        data.append(trace)
    values = [v.mean for _, *pair in points for v in pair]
    ends = [math.floor(min(values)) - 2, math.ceil(max(values)) + 2]
    diagonal = make_trace("base = new", "scatter", x=ends, y=ends, mode="lines", hoverinfo="skip")
    diagonal["line"] = {"dash": "dash", "color": REFERENCE_COLOUR}
    names = "base classes, accuracy %", "new classes, accuracy %"

    def draw(axes: Any) -> None:
        axes.plot(ends, ends, linewidth=1, label="base = new", **ZERO_SHOT_STYLE)
        for i, (label, base, new) in enumerate(points):
            style = {**get_line_style(i), "linestyle": "none", "capsize": 2}
            axes.errorbar([base.mean], [new.mean], [new.std], [base.std], label=label, **style)
        axes.set(xlabel=names[0], ylabel=names[1])
        finish_axes(axes, title, notes, len(points) + 1)

    title = f"Base to new on {rows[0].dataset}: mean and spread over {format_seed_count(rows)}"
    cells = [
        [label, str(base), str(new), str(row.metrics["harmonic"]) if "harmonic" in row.metrics else "", str(base.n)]
        for row, (label, base, new) in zip(rows, points, strict=True)
    ]
    table = Table(title, ["method", "base", "new", "harmonic", "n"], cells, footnotes=tuple(notes))
    text = " ".join(["Accuracy on new classes over that on base classes, which were trained on.", *notes])
    name = make_figure_name("base_new", rows[0].dataset)
    return Figure(name, title, text, draw, {"data": [*data, diagonal], "layout": make_layout(*names)}, table)


@dataclass(frozen=True)
class DatasetGrid:
    """Methods on several datasets, at one number of shots.

    Args:
        name: parts of the names of files.
        metric: name of the metric.
        datasets: in their order.
        cells: {label: {dataset: (value, letter of its protocol)}}.
        notes: footnotes.
        seeds: such as "3 seeds".
    """

    name: tuple[str, str]
    metric: str
    datasets: tuple[str, ...]
    cells: Mapping[str, Mapping[str, tuple[MeanStd, str]]]
    notes: tuple[str, ...]
    seeds: str

    @property
    def title(self) -> str:
        """One line for figures."""
        return f"{', '.join(filter(None, self.name))}: {self.metric}, mean over {self.seeds}"


def collect_dataset_grids(rows: Sequence[ResultRow]) -> list[DatasetGrid]:
    """Return methods by datasets for each task and number of shots, streams and domains aside."""
    groups = dict[tuple[str, int | None], list[ResultRow]]()
    for row in rows:
        if row.task not in (CONTINUAL, DOMAIN) and row.main_metric:
            groups.setdefault((row.task, row.shots), []).append(row)
    return [_collect_grid(group) for group in groups.values()]


def _collect_grid(rows: Sequence[ResultRow]) -> DatasetGrid:
    metric = rows[0].main_metric
    footnotes, cells = Footnotes(uses_letters=True), dict[str, dict[str, tuple[MeanStd, str]]]()
    with_backbone = len({r.backbone for r in rows}) > 1
    for table in group_by_table(rows):
        _, letters, notes = label_rows(table)
        texts = dict(note.split(": ", 1) for note in notes)
        for row in (r for r in table if metric in r.metrics):
            label = format_label(row, "" if with_backbone else row.backbone)
            letter = footnotes.add(texts[letters[id(row)]]) if letters[id(row)] else ""
            cells.setdefault(label, {})[row.dataset] = row.metrics[metric], letter
    shots = format_shots(rows[0].shots)
    datasets = tuple(dict.fromkeys(r.dataset for r in rows))
    notes = tuple(footnotes.format_lines())
    return DatasetGrid((rows[0].task, shots), metric, datasets, cells, notes, format_seed_count(rows))


def _make_grid_table(grid: DatasetGrid) -> Table:
    cells = [
        [label, *(add_letters(str(by_name[d][0]), [by_name[d][1]]) if d in by_name else "" for d in grid.datasets)]
        for label, by_name in grid.cells.items()
    ]
    return Table(grid.title, ["method", *grid.datasets], cells, footnotes=grid.notes)


def build_bar_figures(rows: Sequence[ResultRow]) -> list[Figure]:
    """Build bars of every method on every dataset, a figure per task and number of shots."""
    return [_build_bars(grid) for grid in collect_dataset_grids(rows) if grid.cells]


def _build_bars(grid: DatasetGrid) -> Figure:
    data = list[dict[str, Any]]()
    for i, (label, by_name) in enumerate(grid.cells.items()):
        chosen = [d for d in grid.datasets if d in by_name]
        stats = [by_name[d][0] for d in chosen]
        trace = make_trace(label, "bar", x=[escape(d) for d in chosen], y=clean_numbers([s.mean for s in stats]))
        trace["error_y"] = {"type": "data", "array": clean_numbers([s.std for s in stats])}
        trace["marker"] = {"color": COLOURS[i % len(COLOURS)]}
        trace["text"] = [add_letters(f"n={by_name[d][0].n}", [by_name[d][1]]) for d in chosen]
        trace["textposition"] = "none"
        trace["hovertemplate"] = "%{fullData.name}<br>%{x}: %{y:.1f} %, %{text}<extra></extra>"
        data.append(trace)
    layout = make_layout("dataset", f"{grid.metric}, %", xaxis={"type": "category"}, barmode="group")

    def draw(axes: Any) -> None:
        _draw_bars(axes, grid)
        axes.set_ylabel(f"{grid.metric}, %")
        finish_axes(axes, grid.title, grid.notes, n_labels=math.inf)  # bars leave no room for a legend

    text = " ".join([f"Bars of {grid.metric}, a group per dataset and a bar per method.", *grid.notes])
    size = (max(6.4, 1.6 + 0.22 * len(grid.cells) * len(grid.datasets)), 4.0)
    name = make_figure_name("bars", *grid.name)
    return Figure(name, grid.title, text, draw, {"data": data, "layout": layout}, _make_grid_table(grid), size)


def _draw_bars(axes: Any, grid: DatasetGrid) -> None:
    """Draw a bar per method and dataset, with the letter of its protocol on top."""
    width = 0.8 / len(grid.cells)
    for i, (label, by_name) in enumerate(grid.cells.items()):
        style = {"color": COLOURS[i % len(COLOURS)], "hatch": ("", "//", "..", "xx")[i // len(COLOURS) % 4]}
        places = {x - 0.4 + (i + 0.5) * width: by_name[d] for x, d in enumerate(grid.datasets) if d in by_name}
        means, errors = ([getattr(value, name) for value, _ in places.values()] for name in ("mean", "std"))
        axes.bar([*places], means, width, yerr=errors, capsize=2, label=label, **style)
        for x, (value, letter) in places.items():
            axes.text(x, value.mean + value.std, letter, ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(grid.datasets)), grid.datasets, rotation=0 if len(grid.datasets) < 6 else 40)


def build_radar_figures(rows: Sequence[ResultRow]) -> list[Figure]:
    """Build a radar with an axis per dataset for each task and number of shots with three datasets or more.

    A method that lacks a dataset has no polygon and is named below.
    """
    grids = [g for g in collect_dataset_grids(rows) if len(g.datasets) >= MIN_RADAR_DATASETS]
    return [figure for grid in grids if (figure := _build_radar(grid))]


def _build_radar(grid: DatasetGrid) -> Figure | None:
    complete = {label: by_name for label, by_name in grid.cells.items() if set(by_name) == set(grid.datasets)}
    if not complete:
        return None
    rest = [label for label in grid.cells if label not in complete]
    notes = [*grid.notes, *([f"without {', '.join(rest)}: not on all datasets"] if rest else [])]
    labels = {
        label: add_letters(label, [letter for _, letter in by_name.values()]) for label, by_name in complete.items()
    }
    means = {labels[label]: [by_name[d][0].mean for d in grid.datasets] for label, by_name in complete.items()}
    data = []
    for i, (label, values) in enumerate(means.items()):
        theta = [escape(d) for d in (*grid.datasets, grid.datasets[0])]
        trace = make_trace(label, "scatterpolar", r=clean_numbers([*values, values[0]]), theta=theta)
        trace |= {"line": {"color": COLOURS[i % len(COLOURS)]}, "fill": "none"}
        trace["hovertemplate"] = "%{fullData.name}<br>%{theta}: %{r:.1f} %<extra></extra>"
        data.append(trace)
    layout = {"polar": {"radialaxis": {"range": [0, 100]}}, "legend": LEGEND}

    def draw(axes: Any) -> None:
        _draw_radar(axes, grid.datasets, means)
        axes.set_title(grid.title, fontsize=10, pad=16)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.1, 1.0))
        write_notes(axes, notes)

    text = " ".join([f"Radar of {grid.metric}, an axis per dataset from 0 to 100 %.", *notes])
    name = make_figure_name("radar", *grid.name)
    table = _make_grid_table(grid)
    return Figure(name, grid.title, text, draw, {"data": data, "layout": layout}, table, (6.4, 5.0))


def _draw_radar(axes: Any, datasets: Sequence[str], means: Mapping[str, Sequence[float]]) -> None:
    """Draw rings, spokes and polygons into Cartesian axes, which every figure has."""
    angles = [math.pi / 2 - 2 * math.pi * i / len(datasets) for i in range(len(datasets))]
    for ring in (20, 40, 60, 80, 100):
        circle = [2 * math.pi * k / 120 for k in range(121)]
        axes.plot([ring * math.cos(a) for a in circle], [ring * math.sin(a) for a in circle], "0.85", linewidth=0.7)
        axes.text(0, ring, str(ring), fontsize=6, color="0.4", ha="left")
    for angle, dataset in zip(angles, datasets, strict=True):
        axes.plot([0, 100 * math.cos(angle)], [0, 100 * math.sin(angle)], "0.85", linewidth=0.7)
        x, y = 108 * math.cos(angle), 108 * math.sin(angle)
        side = "center" if abs(x) < 5 else "left" if x > 0 else "right"
        axes.text(x, y, dataset, fontsize=8, ha=side, va="center")
    for i, (label, values) in enumerate(means.items()):
        points = [(v * math.cos(a), v * math.sin(a)) for v, a in zip(values, angles, strict=True)]
        x, y = zip(*points, points[0], strict=True)
        axes.plot(x, y, markersize=3, linewidth=1.2, label=label, **get_line_style(i))
    axes.set_aspect("equal")
    axes.axis("off")
