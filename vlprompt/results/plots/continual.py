"""Pictures of streams: accuracy over the lessons, the accuracy matrix of every method, and which prompts are used."""

import math
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from vlprompt.results.plots.shots import COLOURS, DASHES, MARKS, pyplot, shades, tiles
from vlprompt.results.tables.formats import matrix
from vlprompt.results.tables.summary import Row

BOUND, ZERO = "#222222", "#777777"
MANY = 10  # lessons, above which a matrix has no room for its numbers


def figures(streams: Sequence[Row]) -> Iterator[tuple[str, Any]]:
    """Every picture there are results for, and its name: stages, matrix, prompts."""
    if any(len(_curve(r)) > 1 for r in streams):
        yield "stages.png", over_stages(streams)
    if any(map(_triangle, streams)):
        yield "matrix.png", matrices(streams)
    if any(map(_used, streams)):
        yield "prompts.png", prompts(streams)


def over_stages(found: Sequence[Row]) -> Any:
    """Accuracy on all test images seen so far after each lesson: a line per method, mean and spread over seeds.

    Zero-shot is dashed; joint training, which has one lesson, a dashed horizontal line. ValueError without a stream of
    two lessons or more.
    """
    plt = pyplot()
    tables = {key: [r for r in found if r.table == key] for key in dict.fromkeys(r.table for r in found)}
    tables = {key: some for key, some in tables.items() if any(len(_curve(r)) > 1 for r in some)}
    if not tables:
        raise ValueError(
            "there are no streams of two lessons or more to plot over their lessons; "
            "`vlprompt run nearest_mean digits --task continual --seed 1,2,3` makes some"
        )
    figure, axes = plt.subplots(len(tables), 1, figsize=(7.6, 4.4 * len(tables)), squeeze=False, layout="constrained")
    for axis, some in zip(axes[:, 0], tables.values(), strict=True):
        lines = [r for r in some if len(_curve(r)) > 1 and r.method != "zero_shot"]
        flat = [r for r in some if r not in lines]
        several = len({r.backbone for r in some}) > 1
        for i, row in enumerate(lines):
            again, place = divmod(i, len(COLOURS))
            mean, spread = zip(*_curve(row), strict=True)
            style: dict[str, Any] = {"color": COLOURS[place], "marker": MARKS[again % len(MARKS)]}
            style |= {"linestyle": DASHES[again % len(DASHES)], "markersize": 4, "capsize": 2}
            axis.errorbar(range(1, len(mean) + 1), mean, spread, label=_label(row, several), **style)
        long = max(len(_curve(r)) for r in some)
        bounds = [r for r in flat if r.method != "zero_shot"]
        for row in flat:
            mean, style = [m for m, _ in _curve(row)], {"linewidth": 1.2, "label": _label(row, several)}
            style |= {"color": ZERO, "linestyle": "--"} if row not in bounds else {"color": BOUND}
            if row in bounds:
                style["linestyle"] = ("--", "-.", ":")[bounds.index(row) % 3]
            if len(mean) > 1:
                axis.plot(range(1, len(mean) + 1), mean, **style)
            elif mean:
                axis.axhline(mean[0], **style)
        axis.set_xticks(range(1, long + 1, -(-long // 12)))
        axis.set_xlabel("lessons learned")
        axis.set_ylabel("accuracy on all test images seen so far, %")
        axis.set_title(f"{_title(some[0])}: mean and spread over {_seeds(some)}", fontsize=10)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def matrices(found: Sequence[Row]) -> Any:
    """The accuracy matrix of every method, mean over seeds: after lesson t (down) on the test of lesson i (across)."""
    plt = pyplot()
    panels = [(r, table) for r in found if (table := _triangle(r))]
    if not panels:
        raise ValueError(
            "there are no streams with a test of each lesson, so there is no accuracy matrix to draw; "
            "`vlprompt run nearest_mean digits --task continual --seed 1,2,3` makes some"
        )
    several = len({r.backbone for r, _ in panels}) > 1
    tables = len({r.table for r, _ in panels}) > 1
    figure, axes = tiles(plt, len(panels))
    shown = None
    for axis, (row, table) in zip(axes, panels, strict=False):
        long, wide = len(table), max(map(len, table))
        cells = [[*line, *[math.nan] * (wide - len(line))] for line in table]
        shown = axis.imshow(cells, cmap=shades(0.6, 0.85), vmin=0, vmax=100)
        for t, line in enumerate(table):
            for i, value in enumerate(line if max(long, wide) <= MANY else []):
                axis.text(i, t, f"{value:.0f}", ha="center", va="center", fontsize=8 if long <= 6 else 6.5,
                          color="white" if value > 70 else "black")  # fmt: skip
        _number(axis, wide, long)
        _frame(axis, row, "test of lesson", "after lesson", several, tables)
    figure.colorbar(shown, ax=axes, label="accuracy, %", fraction=0.04, aspect=30)
    return figure


def prompts(found: Sequence[Row]) -> Any:
    """Which prompts of a pool the test images of each lesson take after the last one, for the first seed.

    Not a mean: the same number is another prompt under another seed.
    """
    plt = pyplot()
    panels = [(r, used) for r in found if (used := _used(r))]
    if not panels:
        raise ValueError("no run here has a pool of prompts; `vlprompt run l2p digits --task continual` makes one")
    several = len({r.backbone for r, _ in panels}) > 1
    tables = len({r.table for r, _ in panels}) > 1
    figure, axes = tiles(plt, len(panels))
    top = 100 * max(max(line) for _, used in panels for line in used)
    shown = None
    for axis, (row, used) in zip(axes, panels, strict=False):
        shares = [[100 * share for share in line] for line in used]
        shown = axis.imshow(shares, cmap=shades(0.3, 0.6), vmin=0, vmax=top, aspect="auto")
        _number(axis, len(used[0]), len(used))
        _frame(axis, row, "prompt", "test of lesson", several, tables, f", seed {row.runs[0].config['seed']}")
    figure.colorbar(shown, ax=axes, label="share of a lesson's choices, %", fraction=0.04, aspect=30)
    return figure


def _number(axis: Any, wide: int, long: int) -> None:
    """Ticks that count from 1, twelve at most."""
    for count, put in ((wide, axis.set_xticks), (long, axis.set_yticks)):
        step = -(-count // 12)
        put(range(0, count, step), [str(i + 1) for i in range(0, count, step)], fontsize=7)


def _frame(axis: Any, row: Row, x: str, y: str, several: bool, tables: bool, end: str = "") -> None:
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    where = f"\n{_title(row)}" if tables else ""
    axis.set_title(f"{_label(row, several)}{end}{where}", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _label(row: Row, several: bool) -> str:
    name = row.method + (f" on {row.backbone}" if several else "") + (f" ({row.variant})" if row.variant else "")
    return textwrap.fill(name, 32)


def _title(row: Row) -> str:
    long = "" if row.stages is None else f", {row.stages} stages"
    return f"{row.dataset}, {row.kind.replace('_', '-')}{long}"


def _seeds(some: Sequence[Row]) -> str:
    count = max(len(r.seeds) for r in some)
    return f"{count} seed{'s' * (count != 1)}"


def _curve(row: Row) -> list[tuple[float, float]]:
    """Mean and spread over seeds of the accuracy on everything seen, after each lesson."""
    each = [[tests["seen"]["accuracy"] for tests in r.scores if "seen" in tests] for r in row.runs]
    return [(statistics.fmean(values), statistics.pstdev(values)) for values in zip(*each, strict=False)]


def _triangle(row: Row) -> list[list[float]]:
    """The accuracy matrix, mean over seeds; empty where there is no more than one test."""
    each = [matrix(r) for r in row.runs]
    table = [[statistics.fmean(v) for v in zip(*lines, strict=False)] for lines in zip(*each, strict=False)]
    return table if len(table) > 1 and len(table[-1]) > 1 else []


def _used(row: Row) -> list[list[float]]:
    """The share of each prompt (lesson x prompt) after the last lesson of the first seed; empty without a pool."""
    told = row.runs[0].stages[-1].get("used", {}) if row.runs[0].stages else {}
    lessons = [shares for name, shares in told.items() if name.startswith("seen/")]
    return lessons or [told[name] for name in ("seen",) if name in told]
