"""Parts of interactive figures: Plotly data and layout as plain values, texts escaped, without theme colours."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

REFERENCE_COLOUR = "#808080"  # readable on white and on black
LEGEND = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}  # below the title of the axis


def escape(text: str) -> str:
    """Escape a name, as Plotly reads tags in texts."""
    return html.escape(text, quote=False).replace("\n", "<br>")


def clean_numbers(values: Sequence[float | None]) -> list[float | None]:
    """Return plain rounded numbers; None, which is a gap, for what is none."""
    return [None if v is None or not math.isfinite(v) else round(float(v), 5) for v in values]


def make_trace(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    """Return one trace with an entry in the legend that switches it."""
    return {"type": kind, "name": escape(name), **settings}


def make_layout(x: str, y: str, **settings: Any) -> dict[str, Any]:
    """Return a layout with titles of the axes; further settings update those of the axes too."""
    layout: dict[str, Any] = {"hovermode": "closest", "legend": LEGEND}
    for axis, title in (("xaxis", x), ("yaxis", y)):
        layout[axis] = {"title": {"text": escape(title)}, "automargin": True, **settings.pop(axis, {})}
    return layout | settings


def make_heatmap(
    cells: Sequence[Sequence[float | None]],
    columns: Sequence[str],
    rows: Sequence[str],
    layout: Mapping[str, Any],
    **settings: Any,
) -> dict[str, Any]:
    """Return a figure of one matrix with its first row on top."""
    x, y = ([escape(name) for name in names] for names in (columns, rows))
    trace = make_trace(
        "", "heatmap", z=[clean_numbers(line) for line in cells], x=x, y=y, hoverongaps=False, **settings
    )
    axes = {
        "xaxis": {**layout["xaxis"], "type": "category"},
        "yaxis": {**layout["yaxis"], "type": "category", "autorange": "reversed"},
    }
    return {"data": [trace], "layout": {**layout, **axes}}
