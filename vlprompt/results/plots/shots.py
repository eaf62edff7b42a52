"""Figures of images with their predictions; parts that all figures share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlprompt.results.comparability import CONTINUAL, DOMAIN
from vlprompt.results.tables.summary import MAIN_METRICS, ResultRow

LINE_STYLES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")  # where there are more lines than colours
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e")


def get_line_style(index: int) -> dict[str, Any]:
    """Return colour, marker and line style of a line; markers and line styles tell equal colours apart."""
    cycle, colour = divmod(index, len(COLOURS))
    return {
        "color": COLOURS[colour],
        "marker": MARKERS[cycle % len(MARKERS)],
        "linestyle": LINE_STYLES[cycle % len(LINE_STYLES)],
    }


def format_seed_count(rows: Sequence[ResultRow]) -> str:
    """Return over how many seeds the rows are, from the fewest to the most."""
    fewest, most = min(len(r.seeds) for r in rows), max(len(r.seeds) for r in rows)
    return f"{fewest} to {most} seeds" if fewest < most else f"{most} seed{'s' * (most != 1)}"


def has_shots_curve(row: ResultRow) -> bool:
    """Whether a row belongs into the plot over shots."""
    return MAIN_METRICS.get(row.task) == "accuracy" and row.task not in (CONTINUAL, DOMAIN) and bool(row.shots)


def plot_predictions(
    images: Sequence[Any], captions: Sequence[str], correct: Sequence[bool | None], path: Path
) -> Path:
    """Plot a grid of PIL images with captions: green if correct, red if wrong, black if not known."""
    plt = load_pyplot()
    columns = min(8, len(images))
    lines = -(-len(images) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(1.5 * columns, 1.85 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, caption, is_correct in zip(axes.flat, images, captions, correct, strict=False):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(caption, fontsize=7, color={None: "black", True: "#1a7f37", False: "#cf222e"}[is_correct])
    return save_figure(figure, path)


def load_pyplot() -> Any:
    """Import pyplot with the backend that draws into files."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # names may have $
    from matplotlib import pyplot as plt

    return plt


def list_shades(tint_position: float, colour_position: float) -> list[list[Any]]:
    """Return (position, colour) from a tint, as white would look like no value, over the first colour to a dark one."""
    return [[0.0, "#edf1fc"], [tint_position, "#97b1ea"], [colour_position, COLOURS[0]], [1.0, "#1c2f66"]]


def build_colormap(tint_position: float, colour_position: float) -> Any:
    """Build the map of `list_shades`."""
    return build_scale(list_shades(tint_position, colour_position))


def build_scale(colours: Sequence[Sequence[Any]]) -> Any:
    """Build the map of (position, colour) pairs, which Plotly takes as they are."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("colours", [(position, colour) for position, colour in colours])


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    load_pyplot().close(figure)
    return path
