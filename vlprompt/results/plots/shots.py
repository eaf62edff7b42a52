"""Figures of accuracy over shots and of images with their predictions; parts that all figures share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlprompt.results.comparability import CONTINUAL, DOMAIN
from vlprompt.results.tables.summary import MAIN_METRICS, ResultRow, format_label

LINE_STYLES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")  # where there are more lines than colours
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e")


def plot_shots(rows: Sequence[ResultRow], path: Path) -> Path:
    """Plot accuracy over shots, a line per method with its deviation over seeds; zero-shot as a dashed line.

    Raises:
        ValueError: without few-shot runs.
    """
    plt, rows = load_pyplot(), [r for r in rows if has_shots_curve(r)]
    if not rows:
        raise ValueError(
            "plot: expected few-shot runs, got none. "
            "Make some by `vlprompt run coop digits --shots 1,2,4,8,16 --seed 1,2,3`."
        )
    datasets = list(dict.fromkeys(r.dataset for r in rows))
    width = 9.6 if len(_group_by_line(rows)) > len(COLOURS) else 6.4  # many lines have their legend beside the axes
    size = width * len(datasets), 4.4
    figure, axes = plt.subplots(1, len(datasets), figsize=size, squeeze=False, layout="constrained")
    for axis, dataset in zip(axes[0], datasets, strict=True):
        _draw_shots(axis, [r for r in rows if r.dataset == dataset])
    return save_figure(figure, path)


def _draw_shots(axis: Any, rows: Sequence[ResultRow]) -> None:
    """Draw all methods on one dataset."""
    lines, with_backbone = _group_by_line(rows), len({r.backbone for r in rows}) > 1
    for i, line in enumerate(lines):
        accuracies = [r.metrics["accuracy"] for r in line]
        label = format_label(line[0], "" if with_backbone else line[0].backbone)
        if line[0].method == "zero_shot":
            axis.axhline(accuracies[0].mean, color="#555555", linestyle="--", linewidth=1.2, label=label)
            continue
        shots, means, stds = [r.shots for r in line], [a.mean for a in accuracies], [a.std for a in accuracies]
        axis.errorbar(shots, means, stds, markersize=4, capsize=2, label=label, **get_line_style(i))
    ticks = sorted({r.shots for r in rows if r.shots})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.set_xlabel("training images per class")
    axis.set_ylabel("accuracy on the test split, %")
    n_seeds = max(len(r.seeds) for r in rows)
    axis.set_title(f"{rows[0].dataset}: mean and spread over {n_seeds} seeds", fontsize=10)
    axis.grid(alpha=0.25)
    if len(lines) > len(COLOURS):
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    else:
        axis.legend(fontsize=8, loc="lower right")


def _group_by_line(rows: Sequence[ResultRow]) -> list[list[ResultRow]]:
    """Join the rows of one method, backbone and variant, sorted by shots."""
    lines: dict[tuple[str, str, str], list[ResultRow]] = {}
    for row in rows:
        lines.setdefault((row.method, row.backbone, row.variant), []).append(row)
    return [sorted(line, key=lambda r: r.shots or 0) for line in lines.values()]


def get_line_style(index: int) -> dict[str, Any]:
    """Return colour, marker and line style of a line; markers and line styles tell equal colours apart."""
    cycle, colour = divmod(index, len(COLOURS))
    return {
        "color": COLOURS[colour],
        "marker": MARKERS[cycle % len(MARKERS)],
        "linestyle": LINE_STYLES[cycle % len(LINE_STYLES)],
    }


def format_seed_count(rows: Sequence[ResultRow]) -> str:
    count = max(len(r.seeds) for r in rows)
    return f"{count} seed{'s' * (count != 1)}"


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
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", list_shades(tint_position, colour_position))


def create_panels(plt: Any, count: int) -> tuple[Any, list[Any]]:
    """Create a figure with `count` panels, three in a row."""
    columns = min(3, count)
    lines = -(-count // columns)
    size = (3.0 * columns + 1.2, 2.9 * lines + 0.2)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat)


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    load_pyplot().close(figure)
    return path
