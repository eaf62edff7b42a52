"""Figures of cost against accuracy, with the Pareto front: what no other method beats in both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlprompt.results.plots.figure import Figure, make_figure_name
from vlprompt.results.plots.interactive import REFERENCE_COLOUR, clean_numbers, make_layout, make_trace
from vlprompt.results.plots.lines import add_letters, describe_group, finish_axes, group_for_figures, label_rows
from vlprompt.results.plots.shots import COLOURS, get_line_style
from vlprompt.results.tables.formats import Table
from vlprompt.results.tables.summary import MeanStd, ResultRow

COSTS = {"seconds": "seconds a run", "trained_parameters": "trained parameters"}
ZERO_POSITION = -0.7  # of a cost of 0 on a logarithmic axis, which has no 0


@dataclass(frozen=True)
class CostPoint:
    """One method.

    Args:
        label: with the letter of its protocol.
        cost: seconds or parameters.
        value: of the metric.
        is_comparable: of the protocol that most have, and no oracle; others are not on the front.
    """

    label: str
    cost: float
    value: MeanStd
    is_comparable: bool


def find_pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of (cost, value) that no other point beats: none costs no more and has no less, and differs.

    Returns:
        Indices by rising cost.
    """
    front = [
        i
        for i, (cost, value) in enumerate(points)
        if not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
    ]
    return sorted(front, key=lambda i: points[i])


def build_cost_figures(rows: Sequence[ResultRow]) -> list[Figure]:
    """Build accuracy over seconds and over trained parameters for each task, dataset and number of shots."""
    groups = [[r for r in group if r.main_metric in r.metrics] for group in group_for_figures(rows)]
    groups = [group for group in groups if len(group) > 1]
    return [_build_cost_figure(group, cost) for group in groups for cost in COSTS]


def _build_cost_figure(rows: Sequence[ResultRow], cost: str) -> Figure:
    metric = rows[0].main_metric
    labels, letters, notes = label_rows(rows)
    points = [
        CostPoint(
            add_letters(labels[id(r)], [letters[id(r)]]),
            float(getattr(r, cost)),
            r.metrics[metric],
            not letters[id(r)] and not r.is_oracle,
        )
        for r in rows
    ]
    compared = [p for p in points if p.is_comparable]
    front = [compared[i] for i in find_pareto_front([(p.cost, p.value.mean) for p in compared])]
    if len(compared) < len(points):
        notes = [*notes, "rows of another protocol and oracles are not on the front"]
    devices = {(str(run.environment.get("device")), run.environment.get("threads")) for r in rows for run in r.runs}
    if cost == "seconds" and len(devices) > 1:
        notes = [*notes, f"seconds of {len(devices)} kinds of machines: {', '.join(sorted(d for d, _ in devices))}"]
    parts = describe_group(rows)
    title = f"{', '.join(parts)}: {metric} over {COSTS[cost]}"
    table = Table(
        title,
        ["method", COSTS[cost], metric, "n", "Pareto front"],
        [[p.label, f"{p.cost:,.4g}", str(p.value), str(p.value.n), "yes" if p in front else ""] for p in points],
        footnotes=tuple(notes),
    )
    text = " ".join([f"{metric} over {COSTS[cost]}; on the Pareto front: {', '.join(p.label for p in front)}.", *notes])
    axes_names = COSTS[cost], f"{metric}, %"

    def draw(axes: Any) -> None:
        _draw_costs(axes, points, front)
        axes.set(xlabel=axes_names[0], ylabel=axes_names[1])
        finish_axes(axes, title, notes, len(points) + 1)

    interactive = _make_interactive_costs(points, front, *axes_names)
    return Figure(make_figure_name("cost", cost, *parts), title, text, draw, interactive, table)


def _make_ticks(costs: Sequence[float]) -> tuple[list[float], list[str]]:
    """Return positions and texts of a logarithmic axis on which 0 has its place."""
    positive = [c for c in costs if c > 0]
    low, high = (math.log10(min(positive)), math.log10(max(positive))) if positive else (0.0, 0.0)
    steps = (1, 2, 5) if high - low < 2 else (1,)
    values = [k * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for k in steps]
    values = [v for v in values if low - 0.35 <= math.log10(v) <= high + 0.35] if positive else []
    zero = [(_place(0, costs), "0")] if min(costs) <= 0 else []
    ticks = zero + [(math.log10(v), f"{v:,.10g}") for v in values]
    return [p for p, _ in ticks], [t for _, t in ticks]


def _place(cost: float, costs: Sequence[float]) -> float:
    """Return the position of a cost; that of 0 is left of all others."""
    positive = [c for c in costs if c > 0]
    lowest = math.log10(min(positive)) if positive else 0.0
    return math.log10(cost) if cost > 0 else lowest + ZERO_POSITION


def _draw_costs(axes: Any, points: Sequence[CostPoint], front: Sequence[CostPoint]) -> None:
    costs = [p.cost for p in points]
    for i, point in enumerate(points):
        style = {**get_line_style(i), "linestyle": "none", "capsize": 2}
        axes.errorbar([_place(point.cost, costs)], [point.value.mean], [point.value.std], label=point.label, **style)
    x, y = [_place(p.cost, costs) for p in front], [p.value.mean for p in front]
    style = {"color": REFERENCE_COLOUR, "linestyle": "--", "linewidth": 1, "label": "Pareto front"}
    axes.step(x, y, where="post", zorder=0, **style)
    axes.set_xticks(*_make_ticks(costs))
    axes.margins(x=0.1)


def _make_interactive_costs(points: Sequence[CostPoint], front: Sequence[CostPoint], x: str, y: str) -> dict[str, Any]:
    costs, data = [p.cost for p in points], list[dict[str, Any]]()
    for i, point in enumerate(points):
        place = clean_numbers([_place(point.cost, costs)])
        trace = make_trace(point.label, "scatter", x=place, y=clean_numbers([point.value.mean]), mode="markers")
        trace["marker"] = {"size": 10, "color": COLOURS[i % len(COLOURS)]}
        trace["error_y"] = {"type": "data", "array": clean_numbers([point.value.std])}
        trace["text"] = [f"{point.cost:,.4g} {x}, n={point.value.n}"]
        trace["hovertemplate"] = "%{fullData.name}<br>%{y:.1f} %, %{text}<extra></extra>"
        data.append(trace)
    line = make_trace(
        "Pareto front",
        "scatter",
        x=clean_numbers([_place(p.cost, costs) for p in front]),
        y=clean_numbers([p.value.mean for p in front]),
        mode="lines",
        line={"shape": "hv", "dash": "dash", "color": REFERENCE_COLOUR},
        hoverinfo="skip",
    )
    positions, texts = _make_ticks(costs)
    layout = make_layout(x, y, xaxis={"tickvals": clean_numbers(positions), "ticktext": texts})
    return {"data": [*data, line], "layout": layout}
