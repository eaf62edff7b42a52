"""Pictures: accuracy over shots, and images with what was predicted of them; and what all pictures have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlprompt.results.comparability import DOMAIN, STREAM
from vlprompt.results.tables.summary import MAIN, Row

DASHES, MARKS = ("-", "--", ":", "-."), ("o", "s", "^", "D")  # where there are more lines than colours
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e")


def over_shots(found: Sequence[Row], path: Path) -> Path:
    """Accuracy over shots, a line per method with its spread over seeds; zero-shot as a dashed line.

    ValueError without such runs.
    """
    plt, some = pyplot(), [r for r in found if by_shots(r)]
    if not some:
        raise ValueError(
            "there are no few-shot runs to plot; `vlprompt run coop digits --shots 1,2,4,8,16 --seed 1,2,3` makes some"
        )
    sets = list(dict.fromkeys(r.dataset for r in some))
    wide = 9.6 if len({(r.method, r.backbone, r.variant) for r in some}) > len(COLOURS) else 6.4
    figure, axes = plt.subplots(1, len(sets), figsize=(wide * len(sets), 4.4), squeeze=False, layout="constrained")
    for axis, dataset in zip(axes[0], sets, strict=True):
        here = [r for r in some if r.dataset == dataset]
        kinds = list(dict.fromkeys((r.method, r.backbone, r.variant) for r in here))
        several = len({backbone for _, backbone, _ in kinds}) > 1
        ticks = sorted({r.shots for r in here if r.shots})
        for i, kind in enumerate(kinds):
            line = sorted((r for r in here if (r.method, r.backbone, r.variant) == kind), key=lambda r: r.shots or 0)
            x, y = [r.shots for r in line], [r.numbers["accuracy"].mean for r in line]
            label = kind[0] + (f" on {kind[1]}" if several else "") + (f" ({kind[2]})" if kind[2] else "")
            again, place = divmod(i, len(COLOURS))
            if kind[0] == "zero_shot":
                axis.axhline(y[0], color="#555555", linestyle="--", linewidth=1.2, label=label)
                continue
            axis.errorbar(
                x,
                y,
                [r.numbers["accuracy"].spread for r in line],
                color=COLOURS[place],
                marker=MARKS[again % len(MARKS)],
                linestyle=DASHES[again % len(DASHES)],
                markersize=4,
                capsize=2,
                label=label,
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.set_xlabel("training images per class")
        axis.set_ylabel("accuracy on the test split, %")
        axis.set_title(f"{dataset}: mean and spread over {max(len(r.seeds) for r in here)} seeds", fontsize=10)
        axis.grid(alpha=0.25)
        if len(kinds) > len(COLOURS):
            axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        else:
            axis.legend(fontsize=8, loc="lower right")
    return saved(figure, path)


def by_shots(row: Row) -> bool:
    """Whether a row belongs into the picture over shots."""
    return MAIN.get(row.task) == "accuracy" and row.task not in (STREAM, DOMAIN) and bool(row.shots)


def predictions(pictures: Sequence[Any], captions: Sequence[str], right: Sequence[bool | None], path: Path) -> Path:
    """A grid of PIL images with a caption under each: green when right, red when wrong, black when not known."""
    plt = pyplot()
    columns = min(8, len(pictures))
    lines = -(-len(pictures) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(1.5 * columns, 1.85 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, caption, good in zip(axes.flat, pictures, captions, right, strict=False):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(caption, fontsize=7, color={None: "black", True: "#1a7f37", False: "#cf222e"}[good])
    return saved(figure, path)


def pyplot() -> Any:
    """Matplotlib's, which draws into files only."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def shades(middle: float, colour: float) -> Any:
    """A tint, so that 0 is not taken for nothing, to the first colour of the plots at `colour`, and darker."""
    from matplotlib.colors import LinearSegmentedColormap

    steps = [(0.0, "#edf1fc"), (middle, "#97b1ea"), (colour, COLOURS[0]), (1.0, "#1c2f66")]
    return LinearSegmentedColormap.from_list("shades", steps)


def tiles(plt: Any, count: int) -> tuple[Any, list[Any]]:
    """A figure of so many panels, three in a line."""
    columns = min(3, count)
    lines = -(-count // columns)
    size = (3.0 * columns + 1.2, 2.9 * lines + 0.2)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat)


def saved(figure: Any, path: Path) -> Path:
    """Written as PNG, and closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot().close(figure)
    return path
