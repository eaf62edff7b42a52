"""Figures of domains: pseudo-labels over the epochs, and the accuracy of every method on every pair."""

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlprompt.results.comparability import DOMAIN
from vlprompt.results.plots.accuracy import ZERO_SHOT_STYLE
from vlprompt.results.plots.figure import Figure, make_figure_name
from vlprompt.results.plots.interactive import make_heatmap, make_layout
from vlprompt.results.plots.lines import Line, add_letters, build_line_figure, write_notes
from vlprompt.results.plots.shots import COLOURS, build_scale, format_seed_count, list_shades
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.domains import (
    ORACLE_NOTE,
    DomainPair,
    MethodResults,
    abbreviate_pairs,
    collect_pairs,
    group_by_method,
    mark_method_protocols,
)
from vlprompt.results.tables.formats import Table
from vlprompt.results.tables.summary import ResultRow, group_by_table

MAX_PAIR_PANELS = 4  # with more pairs a method has one figure with the mean over them
CURVES = {
    "coverage": ("pseudo-labelled (coverage)", COLOURS[1], "s"),
    "precision": ("right among these (precision)", COLOURS[4], "^"),
    "target": ("accuracy", COLOURS[0], "o"),
}
GAIN_COLOURS = [[0.0, "#ff725c"], [0.5, "#f7f7f7"], [1.0, COLOURS[0]]]  # worse than zero-shot, equal, better
PAIR_KEYS = ("accuracy", "gain")


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


def collect_pseudo_label_panels(rows: Sequence[ResultRow]) -> list[tuple[str, list[ResultRow]]]:
    """Return the title and the rows of each figure."""
    panels, tables = list[tuple[str, list[ResultRow]]](), group_by_table(rows)
    for table in tables:
        pairs = collect_pairs(table)
        labels, _ = abbreviate_pairs(pairs)
        table_title = f"\n{_format_domain_title(table[0])}" if len(tables) > 1 else ""
        for method in group_by_method(table):
            if not any(_has_pseudo_labels(r) for row in method.rows_by_pair.values() for r in row.runs):
                continue
            name = textwrap.fill(method.name, 32)
            if len(pairs) > MAX_PAIR_PANELS:
                title = f"{name}, mean over {len(method.rows_by_pair)} pairs{table_title}"
                panels.append((title, list(method.rows_by_pair.values())))
                continue
            for pair in (p for p in pairs if p in method.rows_by_pair):
                is_named = table_title and labels[pair] == table[0].dataset  # the title of the table names the pair
                pair_label = "" if is_named else f", {labels[pair]}"
                panels.append((f"{name}{pair_label}{table_title}", [method.rows_by_pair[pair]]))
    return panels


Cells = list[list[float | None]]  # None where there is no run


@dataclass(frozen=True)
class _Colours:
    """What the cells of a heat map are coloured by."""

    cells: Cells
    low: float
    high: float
    scale: Sequence[Sequence[Any]]
    title: str


def build_pair_figures(rows: Sequence[ResultRow]) -> list[Figure]:
    """Build the accuracy on every pair of domains, mean over seeds, in the colour of the gain over zero-shot.

    One figure of every method (row) on every pair (column) for each setting; and for each method one of every source
    (row) on every target (column), where there are several of both. The colour is that of the accuracy itself if a run
    does not know its zero-shot accuracy.
    """
    figures = list[Figure]()
    for table in group_by_table(r for r in rows if r.task == DOMAIN):
        methods, pairs = group_by_method(table), collect_pairs(table)
        labels, legend = abbreviate_pairs(pairs)
        letters, notes = mark_method_protocols(methods, labels)
        notes += [ORACLE_NOTE] if any(m.first_row.is_oracle for m in methods) else []
        names = [add_letters(m.name, [letters[id(m)]]) for m in methods]
        columns = [[p] for p in pairs] + ([pairs] if len(pairs) > 1 else [])
        titles = [*(labels[p] for p in pairs), *(["mean"] if len(pairs) > 1 else [])]
        axis = f"{'source -> target' if '->' in titles[0] else 'target'}{f' ({legend})' if legend else ''}"
        title = f"{_format_domain_title(table[0])}: accuracy on the target's test, %, mean over "
        title += format_seed_count(table)
        values = {key: [[_compute_mean(m, column, key) for column in columns] for m in methods] for key in PAIR_KEYS}
        text = "Accuracy of every method on every pair of domains."
        name = make_figure_name("pairs", table[0].dataset, table[0].kind)
        figures.append(_build_grid(name, title, text, (axis, "method"), (titles, names), values, notes))
        for method, label in zip(methods, names, strict=True):
            figures += _build_transfers(f"{name}-{make_figure_name(label)}", f"{label}: {title}", method, notes)
    return figures


def _build_transfers(name: str, title: str, method: MethodResults, notes: Sequence[str]) -> list[Figure]:
    """Build the figure of one method's sources and targets; none without several of both."""
    single = [p for p in method.rows_by_pair if len(p[0]) == 1]
    sources, targets = sorted({p[0][0] for p in single}), sorted({p[1] for p in single})
    if min(len(sources), len(targets)) < 2 or len(single) < 3:
        return []
    values = {
        key: [
            [_compute_mean(method, [((s,), t)], key) if ((s,), t) in single else None for t in targets] for s in sources
        ]
        for key in PAIR_KEYS
    }
    text = "Accuracy of one method, trained with labels of a source, on every target."
    return [_build_grid(name, title, text, ("target", "source"), (targets, sources), values, notes)]


def _build_grid(
    name: str,
    title: str,
    text: str,
    axes_titles: tuple[str, str],
    ticks: tuple[Sequence[str], Sequence[str]],
    values: dict[str, Cells],
    notes: Sequence[str],
) -> Figure:
    """Build a heat map with the accuracy in each cell.

    Args:
        name: of its files.
        title: one line.
        text: what it shows.
        axes_titles: of the columns and of the rows.
        ticks: names of the columns and of the rows.
        values: accuracy and gain of each cell.
        notes: footnotes.
    """
    colours = _choose_colours(values)
    texts = [["" if v is None else f"{v:.1f}" for v in line] for line in values["accuracy"]]
    interactive = make_heatmap(
        colours.cells,
        *ticks,
        make_layout(*axes_titles),
        zmin=colours.low,
        zmax=colours.high,
        colorscale=colours.scale,
        text=texts,
        texttemplate="%{text}",
        colorbar={"title": {"text": colours.title, "side": "right"}},
        hovertemplate=f"%{{y}}, %{{x}}: accuracy %{{text}} %<br>{colours.title} %{{z:.1f}}<extra></extra>",
    )

    def draw(axes: Any) -> None:
        _draw_cells(axes, colours, texts)
        turned = {"rotation": 30, "ha": "right"} if sum(map(len, ticks[0])) > 60 else {}
        axes.set_xticks(range(len(ticks[0])), ticks[0], fontsize=8, **turned)
        axes.set_yticks(range(len(ticks[1])), [textwrap.fill(name, 36) for name in ticks[1]], fontsize=8)
        axes.set(xlabel=axes_titles[0], ylabel=axes_titles[1])
        axes.set_title(title, fontsize=9)
        axes.spines[:].set_visible(False)
        write_notes(axes, notes)

    rows = [[name, *line] for name, line in zip(ticks[1], texts, strict=True)]
    table = Table(title, [axes_titles[1], *ticks[0]], rows, footnotes=tuple(notes))
    description = " ".join([text, f"The colour is the {colours.title}.", *notes])
    size = max(5.5, 3.0 + 0.7 * len(ticks[0])), 1.6 + 0.42 * len(ticks[1])
    return Figure(name, title, description, draw, interactive, table, size)


def _choose_colours(values: dict[str, Cells]) -> _Colours:
    """Colour by the gain where every cell has one, else by the accuracy."""
    accuracies, gains = values["accuracy"], values["gain"]
    if [[v is None for v in line] for line in accuracies] != [[v is None for v in line] for line in gains]:
        return _Colours(accuracies, 0.0, 100.0, list_shades(0.6, 0.85), "accuracy, %")
    largest = max([abs(v) for line in gains for v in line if v is not None], default=1.0) or 1.0
    return _Colours(gains, -largest, largest, GAIN_COLOURS, "gain over zero-shot, points")


def _draw_cells(axes: Any, colours: _Colours, texts: Sequence[Sequence[str]]) -> None:
    """Draw a heat map with a text in each cell and its bar of colours."""
    cells = [[float("nan") if v is None else v for v in line] for line in colours.cells]
    style = {"cmap": build_scale(colours.scale), "vmin": colours.low, "vmax": colours.high}
    image = axes.imshow(cells, aspect="auto", **style)
    for y, line in enumerate(texts):
        for x, value in enumerate(line):
            is_dark = abs(colours.cells[y][x] or 0.0) > 0.7 * colours.high
            axes.text(x, y, value, ha="center", va="center", fontsize=8, color="white" if is_dark else "black")
    axes.figure.colorbar(image, ax=axes, fraction=0.04).set_label(colours.title, fontsize=8)


def _format_domain_title(row: ResultRow) -> str:
    return f"{row.dataset}, {row.kind.replace('_', '-')}"


def _get_epoch_records(result: Result) -> list[dict[str, float]]:
    return result.stages[-1].get("epochs", []) if result.stages else []


def _has_pseudo_labels(result: Result) -> bool:
    return any("coverage" in epoch for epoch in _get_epoch_records(result))


def average_over_epochs(rows: Sequence[ResultRow], key: str) -> tuple[list[float], list[float]]:
    """Average over the pairs of each seed, then over seeds, after every epoch that all have.

    Returns:
        Means and standard deviations by epoch.
    """
    by_seed: dict[int, list[list[float]]] = {}
    for result in (r for row in rows for r in row.runs):
        by_seed.setdefault(result.config["seed"], []).append([e[key] for e in _get_epoch_records(result) if key in e])
    curves = [[statistics.fmean(values) for values in zip(*runs, strict=False)] for runs in by_seed.values()]
    by_epoch = list(zip(*curves, strict=False))
    return [statistics.fmean(values) for values in by_epoch], [statistics.pstdev(values) for values in by_epoch]


def _compute_mean(method: MethodResults, pairs: Sequence[DomainPair], name: str) -> float | None:
    mean = method.mean(pairs, lambda result: result.summary.get(name))
    return None if mean is None else mean.mean
