"""Lines with their spread: drawn, interactive and as a table; labels of rows with the letters of their protocols."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlprompt.results.comparability import CONTINUAL, DOMAIN, get_domain_pair
from vlprompt.results.plots.figure import Figure
from vlprompt.results.plots.interactive import clean_numbers, make_layout, make_trace
from vlprompt.results.tables.formats import Table
from vlprompt.results.tables.summary import ResultRow, format_label, mark_protocols


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Args:
        label: in the legend.
        x: positions.
        mean: values.
        std: deviations over seeds; empty for none.
        n: seeds at each position; empty for one.
        style: of Matplotlib: color, marker, linestyle.
        is_reference: drawn without markers; a single value as a horizontal line.
    """

    label: str
    x: Sequence[float]
    mean: Sequence[float]
    std: Sequence[float] = ()
    n: Sequence[int] = ()
    style: dict[str, Any] = field(default_factory=dict)
    is_reference: bool = False


def label_rows(rows: Sequence[ResultRow]) -> tuple[dict[int, str], dict[int, str], list[str]]:
    """Return the label and the protocol letter of each row of one table by its id, and the footnotes."""
    letters, notes = mark_protocols(rows)
    with_backbone = len({r.backbone for r in rows}) > 1
    labels = {id(r): format_label(r, "" if with_backbone else r.backbone) for r in rows}
    return labels, letters, notes


def group_for_figures(rows: Iterable[ResultRow]) -> list[list[ResultRow]]:
    """Return rows of one task, dataset, number of shots and pair of domains together, which one figure compares."""
    groups = dict[tuple[Any, ...], list[ResultRow]]()
    for row in rows:
        pair = get_domain_pair(row.runs[0]) if row.task == DOMAIN else None
        groups.setdefault((row.table_key, row.shots, pair), []).append(row)
    return list(groups.values())


def describe_group(rows: Sequence[ResultRow]) -> list[str]:
    """Return what the rows of one figure share, for its title and its name: task, dataset, shots, kind, pair."""
    first = rows[0]
    parts = [first.task, first.dataset, format_shots(first.shots)]
    if first.task in (CONTINUAL, DOMAIN):
        parts.append(first.kind.replace("_", "-"))
    if first.stages:
        parts.append(f"{first.stages} stages")
    if first.task == DOMAIN:
        sources, target = get_domain_pair(first.runs[0])
        pair = f"{'+'.join(sources)} -> {target}"
        parts += [pair] if pair != first.dataset else []
    return [part for part in parts if part]


def format_shots(shots: int | None) -> str:
    """Return "4 shots"; nothing for all images."""
    return "" if shots is None else f"{shots} shot{'s' * (shots != 1)}"


def add_letters(label: str, letters: Iterable[str]) -> str:
    """Return a label with the letters of its protocols, such as "coop [a]"."""
    text = " ".join(dict.fromkeys(filter(None, letters)))
    return f"{label} [{text}]" if text else label


def write_notes(axes: Any, notes: Sequence[str]) -> None:
    """Write footnotes below axes."""
    if notes:
        text = "\n".join(notes)
        axes.annotate(
            text, (0, 0), (0, -42), "axes fraction", "offset points", fontsize=7, va="top", annotation_clip=False
        )


def draw_lines(axes: Any, lines: Sequence[Line]) -> None:
    """Draw lines, with error bars where they have deviations."""
    for line in lines:
        if line.is_reference and len(line.x) == 1:
            axes.axhline(line.mean[0], linewidth=1.2, label=line.label, **line.style)
        elif line.is_reference or not line.std:
            axes.plot(line.x, line.mean, linewidth=1.2, markersize=4, label=line.label, **line.style)
        else:
            axes.errorbar(line.x, line.mean, line.std, markersize=4, capsize=2, label=line.label, **line.style)


def make_line_traces(lines: Sequence[Line], x_name: str) -> list[dict[str, Any]]:
    """Return a trace per line, with mean, spread and n on hover; a reference of one value spans all positions."""
    dashes, traces = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}, list[dict[str, Any]]()
    span = [min(v for line in lines for v in line.x), max(v for line in lines for v in line.x)] if lines else []
    for line in lines:
        is_level = line.is_reference and len(line.x) == 1
        x, mean = (span, [*line.mean] * 2) if is_level else (line.x, line.mean)
        stats = [f"±{s:.2f}, n={n}" for s, n in zip(line.std or [0.0] * len(x), line.n or [1] * len(x), strict=False)]
        trace = make_trace(
            line.label,
            "scatter",
            x=clean_numbers(x),
            y=clean_numbers(mean),
            mode="lines" if line.is_reference or not line.std else "lines+markers",
            line={"color": line.style.get("color"), "dash": dashes[line.style.get("linestyle", "-")]},
            hovertemplate=f"%{{fullData.name}}<br>{x_name} %{{x}}<br>%{{y:.4~g}} %{{text}}<extra></extra>",
            text=(stats * 2)[:2] if is_level else stats,
        )
        if line.std and not is_level:
            trace["error_y"] = {"type": "data", "array": clean_numbers(line.std)}
        traces.append(trace)
    return traces


def make_line_table(title: str, x_name: str, lines: Sequence[Line], notes: Sequence[str] = ()) -> Table:
    """Return a table with a column per position."""
    positions = sorted({x for line in lines for x in line.x})
    cells = []
    for line in lines:
        stds = line.std or [0.0] * len(line.x)
        counts = line.n or [1] * len(line.x)
        by_x = {
            x: f"{m:.4g}" if n < 2 else f"{m:.1f}±{s:.1f}"
            for x, m, s, n in zip(line.x, line.mean, stds, counts, strict=False)
        }
        cells.append([line.label, *(by_x.get(x, "") for x in positions)])
    return Table(title, [x_name, *(f"{x:g}" for x in positions)], cells, footnotes=tuple(notes))


def build_line_figure(
    name: str,
    title: str,
    description: str,
    lines: Sequence[Line],
    x: str,
    y: str,
    notes: Sequence[str] = (),
    log_ticks: Sequence[int] = (),
) -> Figure:
    """Build a figure of lines.

    Args:
        name: of its files.
        title: one line.
        description: what it shows.
        lines: with their labels.
        x: title of the horizontal axis.
        y: title of the vertical axis.
        notes: footnotes.
        log_ticks: positions that are named on a logarithmic axis; empty for a linear one.
    """
    settings: dict[str, Any] = {}
    if log_ticks:
        settings = {"xaxis": {"type": "log", "tickvals": [*log_ticks], "ticktext": [str(v) for v in log_ticks]}}
    interactive = {"data": make_line_traces(lines, x), "layout": make_layout(x, y, **settings)}

    def draw(axes: Any) -> None:
        draw_lines(axes, lines)
        if log_ticks:
            axes.set_xscale("log", base=2)
            axes.set_xticks(log_ticks, [str(v) for v in log_ticks])
            axes.minorticks_off()
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel=x, ylabel=y)
        finish_axes(axes, title, notes, len(lines))

    text = " ".join([description, *notes])
    return Figure(name, title, text, draw, interactive, make_line_table(title, x, lines, notes))


def finish_axes(axes: Any, title: str, notes: Sequence[str], n_labels: float) -> None:
    """Set title, grid, legend and footnotes; the legend of many labels stands beside the axes."""
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    if n_labels > 3:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    else:
        axes.legend(fontsize=8, loc="best")
    write_notes(axes, notes)
