"""Figures of domains: pseudo-labels over the epochs, and the accuracy of every method on every pair."""

import statistics
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from vlprompt.results.plots.shots import COLOURS, build_colormap, create_panels, format_seed_count, load_pyplot
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.domains import (
    ORACLE_NOTE,
    DomainPair,
    MethodResults,
    abbreviate_pairs,
    collect_pairs,
    group_by_method,
)
from vlprompt.results.tables.summary import ResultRow, group_by_table

MAX_PAIR_PANELS = 4  # with more pairs a method has one panel with the mean over them
CURVES = {
    "coverage": ("pseudo-labelled (coverage)", COLOURS[1], "s"),
    "precision": ("right among these (precision)", COLOURS[4], "^"),
    "target": ("accuracy", COLOURS[0], "o"),
}
LOSS_COLOUR = "#ff725c"


def iter_domain_figures(rows: Sequence[ResultRow]) -> Iterator[tuple[str, Any]]:
    """Yield the file name and figure of every plot that there are results for."""
    if any(_has_pseudo_labels(r) for row in rows for r in row.runs):
        yield "pseudo.png", plot_pseudo_labels(rows)
    if rows:
        yield "pairs.png", plot_pair_matrices(rows)


def plot_pseudo_labels(rows: Sequence[ResultRow]) -> Any:
    """Plot over the epochs how many target images have a pseudo-label, how many of these are right, and the accuracy.

    A panel for each pair up to four, else one with the mean over the pairs; a band of one standard deviation over
    seeds; zero-shot dashed.

    Raises:
        ValueError: if no run has pseudo-labels.
    """
    panels = collect_pseudo_label_panels(rows)
    if not panels:
        raise ValueError(
            "plot: expected a run with pseudo-labels, got none. "
            "Make one by `vlprompt run dapl --source glyphs --target digits`."
        )
    figure, axes = create_panels(load_pyplot(), len(panels))
    for axis, (title, panel_rows) in zip(axes, panels, strict=False):
        _draw_pseudo_labels(axis, panel_rows)
        axis.set_title(title, fontsize=9)
    bottom = min(axis.get_ylim()[0] for axis in axes[: len(panels)])
    for axis in axes:
        axis.set_ylim(max(bottom, 0), 101)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(2 * len(panels), 4), fontsize=8)
    return _add_oracle_note(figure, [row for _, panel_rows in panels for row in panel_rows])


def collect_pseudo_label_panels(rows: Sequence[ResultRow]) -> list[tuple[str, list[ResultRow]]]:
    """Return the title and the rows of each panel."""
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


def _draw_pseudo_labels(axis: Any, rows: Sequence[ResultRow]) -> None:
    for key, (label, colour, marker) in CURVES.items():
        mean, std = average_over_epochs(rows, key)
        epochs = range(1, len(mean) + 1)
        axis.plot(epochs, mean, color=colour, marker=marker, markersize=3, label=label)
        low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
        axis.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
    zero_shot = [r.summary["zero_shot"] for row in rows for r in row.runs if "zero_shot" in r.summary]
    if zero_shot:
        style = {"color": "#555555", "linestyle": "--", "linewidth": 1.2}
        axis.axhline(statistics.fmean(zero_shot), label="zero-shot accuracy", **style)
    axis.set_xlabel("epoch", fontsize=8)
    axis.set_ylabel("target images, %", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25)


def plot_pair_matrices(rows: Sequence[ResultRow]) -> Any:
    """Plot the accuracy of every method (row) on every pair (column), mean over seeds, in the colour of the gain.

    The colour is that of the accuracy itself if a run does not know its zero-shot accuracy.
    """
    plt, tables = load_pyplot(), group_by_table(rows)
    sizes = [(len(group_by_method(table)), len(collect_pairs(table))) for table in tables]
    width = 3.6 + 0.62 * max(n_pairs + (n_pairs > 1) for _, n_pairs in sizes)
    heights = [1.5 + 0.36 * n_methods for n_methods, _ in sizes]
    figure, axes = plt.subplots(
        len(tables),
        1,
        figsize=(max(width, 5.5), sum(heights)),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for axis, table in zip(axes[:, 0], tables, strict=True):
        _draw_pair_matrix(axis, table)
    return _add_oracle_note(figure, rows)


def _draw_pair_matrix(axis: Any, rows: Sequence[ResultRow]) -> None:
    methods, pairs = group_by_method(rows), collect_pairs(rows)
    columns = [[p] for p in pairs] + ([pairs] if len(pairs) > 1 else [])
    accuracies = [[_compute_mean(m, column, "accuracy") for column in columns] for m in methods]
    gains = [[_compute_mean(m, column, "gain") for column in columns] for m in methods]
    has_gains = [[v is None for v in line] for line in accuracies] == [[v is None for v in line] for line in gains]
    colours = gains if has_gains else accuracies
    maximum = max([abs(v) for line in colours for v in line if v is not None], default=1.0) or 1.0
    style: dict[str, Any] = {"cmap": build_colormap(0.6, 0.85), "vmin": 0, "vmax": 100}
    if has_gains:
        style = {"cmap": _build_gain_colormap(), "vmin": -maximum, "vmax": maximum}
    cells = [[float("nan") if v is None else v for v in line] for line in colours]
    image = axis.imshow(cells, aspect="auto", **style)
    for y, line in enumerate(accuracies):
        for x, value in enumerate(line):
            is_dark = colours[y][x] is not None and (colours[y][x] or 0.0) > 0.7 * style["vmax"]
            font = {"color": "white" if is_dark else "black", "weight": "bold" if len(columns[x]) > 1 else "normal"}
            axis.text(x, y, "" if value is None else f"{value:.1f}", ha="center", va="center", fontsize=8, **font)
    _label_pair_matrix(axis, rows, methods, pairs)
    bar = axis.figure.colorbar(image, ax=axis, fraction=0.04)
    bar.set_label("gain over zero-shot, points" if has_gains else "accuracy, %", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _label_pair_matrix(
    axis: Any, rows: Sequence[ResultRow], methods: Sequence[MethodResults], pairs: Sequence[DomainPair]
) -> None:
    labels, legend = abbreviate_pairs(pairs)
    ticks = [*(labels[p] for p in pairs), *(["mean"] if len(pairs) > 1 else [])]
    is_crowded = 0.07 * max(map(len, ticks)) > (axis.figure.get_figwidth() - 2.5) / len(ticks)
    axis.set_xticks(range(len(ticks)), ticks, fontsize=8, **({"rotation": 30, "ha": "right"} if is_crowded else {}))
    axis.set_yticks(range(len(methods)), [textwrap.fill(m.name, 36) for m in methods], fontsize=8)
    columns = "source -> target" if "->" in ticks[0] else "target"
    axis.set_xlabel(columns + (f" ({legend})" if legend else ""), fontsize=8)
    title = f"{_format_domain_title(rows[0])}: accuracy on the target's test, %, mean over {format_seed_count(rows)}"
    axis.set_title(title, fontsize=9)
    axis.spines[:].set_visible(False)


def _add_oracle_note(figure: Any, rows: Sequence[ResultRow]) -> Any:
    """Explain the star of an oracle if there is one."""
    if any(row.is_oracle for row in rows):
        figure.suptitle(ORACLE_NOTE, fontsize=8, x=0.01, ha="left")
    return figure


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


def _build_gain_colormap() -> Any:
    """Build a map from worse than zero-shot over equal to better."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("gains", [(0.0, LOSS_COLOUR), (0.5, "#f7f7f7"), (1.0, COLOURS[0])])
