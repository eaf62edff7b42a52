"""Pictures of domains: pseudo-labels over the epochs, and the accuracy of every method on every pair."""

import statistics
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from vlprompt.results.plots.shots import COLOURS, pyplot, shades, tiles
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.domains import ORACLE, Line, Pair, lines, names, pairs_of
from vlprompt.results.tables.summary import Row

FEW = 4  # pairs, above which a method has one panel with the mean over them
CURVES = {
    "coverage": ("pseudo-labelled (coverage)", COLOURS[1], "s"),
    "precision": ("right among these (precision)", COLOURS[4], "^"),
    "target": ("accuracy", COLOURS[0], "o"),
}
WORSE = "#ff725c"


def figures(found: Sequence[Row]) -> Iterator[tuple[str, Any]]:
    """Every picture there are results for, and its name: pseudo, pairs."""
    if any(_guessed(r) for row in found for r in row.runs):
        yield "pseudo.png", pseudo(found)
    if found:
        yield "pairs.png", matrices(found)


def pseudo(found: Sequence[Row]) -> Any:
    """Of methods with pseudo-labels, over the epochs: how many target images have one, how many are right, accuracy.

    A panel for each pair up to four, else the mean over the pairs; a band of one standard deviation over seeds;
    zero-shot dashed. ValueError where no run has pseudo-labels.
    """
    shown = list[tuple[str, list[Row]]]()
    tables = _tables(found)
    for some in tables:
        here = [line for line in lines(some) if any(_guessed(r) for row in line.rows.values() for r in row.runs)]
        pairs = pairs_of(some)
        short, _ = names(pairs)
        where = f"\n{_where(some[0])}" if len(tables) > 1 else ""
        for line in here:
            name = textwrap.fill(line.name, 32)
            if len(pairs) <= FEW:
                told = {p: "" if where and short[p] == some[0].dataset else f", {short[p]}" for p in pairs}
                shown += [(f"{name}{told[p]}{where}", [line.rows[p]]) for p in pairs if p in line.rows]
            else:
                shown.append((f"{name}, mean over {len(line.rows)} pairs{where}", list(line.rows.values())))
    if not shown:
        raise ValueError(
            "no run here has pseudo-labels; `vlprompt run dapl --source glyphs --target digits` makes some"
        )
    figure, axes = tiles(pyplot(), len(shown))
    for axis, (title, some) in zip(axes, shown, strict=False):
        for key, (label, colour, mark) in CURVES.items():
            mean, spread = _over_epochs(some, key)
            x = range(1, len(mean) + 1)
            axis.plot(x, mean, color=colour, marker=mark, markersize=3, label=label)
            low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
            axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        zero = [r.summary["zero_shot"] for row in some for r in row.runs if "zero_shot" in r.summary]
        if zero:
            axis.axhline(
                statistics.fmean(zero), color="#555555", linestyle="--", linewidth=1.2, label="zero-shot accuracy"
            )
        axis.set_xlabel("epoch", fontsize=8)
        axis.set_ylabel("target images, %", fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
    low = min(axis.get_ylim()[0] for axis in axes[: len(shown)])
    for axis in axes:
        axis.set_ylim(max(low, 0), 101)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(2 * len(shown), 4), fontsize=8)
    return _starred(figure, [row for _, some in shown for row in some])


def matrices(found: Sequence[Row]) -> Any:
    """The accuracy of every method (down) on every pair (across), mean over seeds, in the colour of the gain.

    The colour is that of the accuracy itself where a run does not know its zero-shot accuracy.
    """
    plt, tables = pyplot(), _tables(found)
    sizes = [(len(lines(some)), len(pairs_of(some))) for some in tables]
    wide = 3.6 + 0.62 * max(count + (count > 1) for _, count in sizes)
    heights = [1.5 + 0.36 * tall for tall, _ in sizes]
    figure, axes = plt.subplots(len(tables), 1, figsize=(max(wide, 5.5), sum(heights)), squeeze=False,
                                height_ratios=heights, layout="constrained")  # fmt: skip
    for axis, some in zip(axes[:, 0], tables, strict=True):
        shown, pairs = lines(some), pairs_of(some)
        short, meant = names(pairs)
        columns = [[p] for p in pairs] + ([pairs] if len(pairs) > 1 else [])
        numbers = [[_cell(line, column, "accuracy") for column in columns] for line in shown]
        gains = [[_cell(line, column, "gain") for column in columns] for line in shown]
        known = [[v is None for v in line] for line in numbers] == [[v is None for v in line] for line in gains]
        values = gains if known else numbers
        top = max([abs(v) for line in values for v in line if v is not None], default=1.0) or 1.0
        style: dict[str, Any] = {"cmap": _gains(), "vmin": -top, "vmax": top}
        style = style if known else {"cmap": shades(0.6, 0.85), "vmin": 0, "vmax": 100}
        image = axis.imshow(
            [[float("nan") if v is None else v for v in line] for line in values], aspect="auto", **style
        )
        for y, line in enumerate(numbers):
            for x, value in enumerate(line):
                dark = values[y][x] is not None and (values[y][x] or 0.0) > 0.7 * style["vmax"]
                axis.text(x, y, "" if value is None else f"{value:.1f}", ha="center", va="center", fontsize=8,
                          color="white" if dark else "black",
                          weight="bold" if len(columns[x]) > 1 else "normal")  # fmt: skip
        ticks = [*(short[p] for p in pairs), *(["mean"] if len(pairs) > 1 else [])]
        slant = 0.07 * max(map(len, ticks)) > (figure.get_figwidth() - 2.5) / len(ticks)
        style = {"rotation": 30, "ha": "right"} if slant else {}
        axis.set_xticks(range(len(ticks)), ticks, fontsize=8, **style)
        axis.set_yticks(range(len(shown)), [textwrap.fill(line.name, 36) for line in shown], fontsize=8)
        across = "source -> target" if "->" in ticks[0] else "target"
        axis.set_xlabel(across + (f" ({meant})" if meant else ""), fontsize=8)
        axis.set_title(f"{_where(some[0])}: accuracy on the target's test, %, mean over {_seeds(some)}", fontsize=9)
        axis.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axis, fraction=0.04)
        bar.set_label("gain over zero-shot, points" if known else "accuracy, %", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    return _starred(figure, found)


def _starred(figure: Any, found: Sequence[Row]) -> Any:
    """With a line that says what the star of an oracle means, where there is one."""
    if any(row.oracle for row in found):
        figure.suptitle(ORACLE, fontsize=8, x=0.01, ha="left")
    return figure


def _tables(found: Sequence[Row]) -> list[list[Row]]:
    return [[r for r in found if r.table == key] for key in dict.fromkeys(r.table for r in found)]


def _where(row: Row) -> str:
    return f"{row.dataset}, {row.kind.replace('_', '-')}"


def _seeds(some: Sequence[Row]) -> str:
    count = max(len(r.seeds) for r in some)
    return f"{count} seed{'s' * (count != 1)}"


def _epochs(result: Result) -> list[dict[str, float]]:
    return result.stages[-1].get("epochs", []) if result.stages else []


def _guessed(result: Result) -> bool:
    return any("coverage" in epoch for epoch in _epochs(result))


def _over_epochs(some: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Mean over pairs of each seed, then over seeds with their standard deviation, after every epoch that all have."""
    by_seed: dict[int, list[list[float]]] = {}
    for result in (r for row in some for r in row.runs):
        by_seed.setdefault(result.config["seed"], []).append([e[key] for e in _epochs(result) if key in e])
    curves = [[statistics.fmean(values) for values in zip(*each, strict=False)] for each in by_seed.values()]
    over = list(zip(*curves, strict=False))
    return [statistics.fmean(values) for values in over], [statistics.pstdev(values) for values in over]


def _cell(line: Line, pairs: Sequence[Pair], name: str) -> float | None:
    found = line.mean(pairs, lambda result: result.summary.get(name))
    return None if found is None else found.mean


def _gains() -> Any:
    """From worse than zero-shot over the same to better."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("gains", [(0.0, WORSE), (0.5, "#f7f7f7"), (1.0, COLOURS[0])])
