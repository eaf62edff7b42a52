"""A figure as a value: drawn by Matplotlib into a file or given axes, shown by Plotly on a page, read as a table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlprompt.results.tables.formats import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Figure:
    """One figure of results.

    Args:
        name: of its files, without suffix.
        title: one line.
        description: what it shows, for those who do not see it.
        draw: draws it into axes.
        interactive: the same as a Plotly figure, {"data": [...], "layout": {...}}, without colours of a theme; None
            for a figure that is a picture only.
        table: its numbers.
        size: width and height in inches.
    """

    name: str
    title: str
    description: str
    draw: "Callable[[Axes], None]"
    interactive: dict[str, Any] | None = None
    table: Table | None = None
    size: tuple[float, float] = (6.4, 4.0)
