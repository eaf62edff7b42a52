"""Axes and colours that the pictures of what was learned share."""

from collections.abc import Sequence
from typing import Any

from vlprompt.results.plots.shots import load_pyplot


def prepare_axes(axes: Any, size: tuple[float, float]) -> Any:
    """Return the axes to draw into: those that are given, or those of a new figure of this size in inches."""
    return load_pyplot().subplots(figsize=size, layout="constrained")[1] if axes is None else axes


def split_axes(axes: Any, n_rows: int, n_columns: int, gap: float = 0.06) -> list[list[Any]]:
    """Return a grid of axes inside axes, which are hidden themselves."""
    axes.axis("off")
    width, height = (1 - gap * (n_columns - 1)) / n_columns, (1 - gap * (n_rows - 1)) / n_rows
    return [
        [axes.inset_axes((x * (width + gap), 1 - height - y * (height + gap), width, height)) for x in range(n_columns)]
        for y in range(n_rows)
    ]


def list_class_colours(count: int) -> list[Any]:
    """Return a colour for each of up to twenty classes."""
    colormap = load_pyplot().get_cmap("tab10" if count <= 10 else "tab20")
    return [colormap(i) for i in range(count)]


def shorten(names: Sequence[str], length: int = 18) -> list[str]:
    """Return names that fit beside an axis."""
    return [name if len(name) <= length else f"{name[: length - 1]}…" for name in names]


def set_name_ticks(axes: Any, names: Sequence[str], which: str, rotation: int = 0) -> None:
    """Write names along "x" or "y"."""
    size = 8 if len(names) <= 12 else 6 if len(names) <= 25 else 5
    set_ticks = axes.set_xticks if which == "x" else axes.set_yticks
    set_ticks(range(len(names)), shorten(names), fontsize=size, rotation=rotation)
