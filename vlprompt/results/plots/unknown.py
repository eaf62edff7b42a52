"""Figures of runs against unknown classes: histograms of each score, and ROC curves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlprompt.metrics import auroc, fpr_at_recall, roc_curve
from vlprompt.results.plots.figure import Figure, make_figure_name
from vlprompt.results.plots.interactive import REFERENCE_COLOUR, clean_numbers, make_layout, make_trace
from vlprompt.results.plots.lines import finish_axes
from vlprompt.results.plots.shots import COLOURS
from vlprompt.results.run_folder import Result, RunFolder
from vlprompt.results.tables.formats import Table
from vlprompt.results.test_answers import UnknownScores

N_BINS, MAX_POINTS, RECALL = 40, 500, 0.95
THRESHOLD_LABEL, SHARE_TITLE = f"accepts {100 * RECALL:g} % of the known", "share of the items in a bin, %"
UNKNOWN_TITLE, KNOWN_TITLE = "unknown accepted, %", "known accepted, %"
RECALLS = (0.8, 0.9, 0.95, 0.99)  # of the known, at which the table has the share of the unknown accepted


def read_run_scores(result: Result) -> UnknownScores | None:
    """Return the scores of known and unknown items of a run; None for a run without any."""
    return RunFolder(Path(result.folder)).read_unknown_scores() if result.folder else None


def label_unknown_sets(result: Result, scores: UnknownScores) -> dict[str, str]:
    """Return for each set of unknown items its name and whether it is near (of the dataset itself) or far."""
    own = result.protocol.get("dataset")
    return {name: f"{name}, {'other classes (near)' if name == own else 'far'}" for name in scores.unknown}


def compute_threshold(known: Tensor, recall: float = RECALL) -> float:
    """Return the largest threshold that accepts at least a share of the known scores (N,)."""
    return known.double().sort(descending=True).values[math.ceil(recall * len(known)) - 1].item()


def count_shares(values: Tensor, edges: Tensor) -> list[float]:
    """Return the percentage of values (N,) in each bin [lower, upper) between edges; the last one has its upper end."""
    bins = (torch.bucketize(values.double().contiguous(), edges, right=True) - 1).clamp(0, len(edges) - 2)
    return (100 * torch.bincount(bins, minlength=len(edges) - 1).double() / len(values)).tolist()


def thin_curve(x: Tensor, y: Tensor, n: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """Return a curve without points on a straight line, and of more than n points every k-th, with both ends."""
    dx, dy = x.diff(), y.diff()
    turns = (dx[:-1] * dy[1:] - dx[1:] * dy[:-1]).abs() > 1e-9
    ends = torch.ones(1, dtype=torch.bool)
    corners = torch.cat([ends, turns, ends]).nonzero()[:, 0]
    if len(corners) > n:
        corners = corners[torch.linspace(0, len(corners) - 1, n).round().long()]
    return x[corners].tolist(), y[corners].tolist()


@dataclass(frozen=True)
class _Histogram:
    """Histograms of one score.

    Args:
        score: its name.
        shares: label of a set -> percent of its items in each bin.
        edges: of the bins.
        threshold: that accepts `RECALL` of the known.
    """

    score: str
    shares: dict[str, list[float]]
    edges: list[float]
    threshold: float

    def draw(self, axes: Any, title: str) -> None:
        for (label, shares), colour in zip(self.shares.items(), cycle(COLOURS), strict=False):
            axes.stairs(shares, self.edges, fill=True, color=colour, alpha=0.45, label=label)
            axes.stairs(shares, self.edges, color=colour, linewidth=1)
        axes.axvline(self.threshold, color=REFERENCE_COLOUR, linestyle="--", linewidth=1.2, label=THRESHOLD_LABEL)
        axes.set(xlabel=self.score, ylabel=SHARE_TITLE)
        finish_axes(axes, title, [], 0)

    def make_interactive(self) -> dict[str, Any]:
        centres = clean_numbers([(low + high) / 2 for low, high in pairwise(self.edges)])
        traces = [
            make_trace(
                label,
                "bar",
                x=centres,
                y=clean_numbers(shares),
                width=self.edges[1] - self.edges[0],
                opacity=0.55,
                marker={"color": colour},
                hovertemplate="%{fullData.name}<br>%{x:.4g}: %{y:.2f} %<extra></extra>",
            )
            for (label, shares), colour in zip(self.shares.items(), cycle(COLOURS), strict=False)
        ]
        x, y = [self.threshold] * 2, [0.0, max(max(shares) for shares in self.shares.values())]
        line = make_trace(THRESHOLD_LABEL, "scatter", x=clean_numbers(x), y=clean_numbers(y), mode="lines")
        line["line"] = {"dash": "dash", "color": REFERENCE_COLOUR}
        return {"data": [*traces, line], "layout": make_layout(self.score, SHARE_TITLE, barmode="overlay")}

    def make_table(self, title: str) -> Table:
        bins = zip(pairwise(self.edges), zip(*self.shares.values(), strict=True), strict=True)
        rows = [
            [f"{low:.4g} to {high:.4g}", *(f"{share:.2f}" for share in line)] for (low, high), line in bins if any(line)
        ]
        return Table(title, [self.score, *(f"{label}, %" for label in self.shares)], rows)


def build_score_histogram(score: str, known: Tensor, unknown: Mapping[str, Tensor], name: str, title: str) -> Figure:
    """Build the histograms of one score over the known items and over each set of unknown ones.

    Args:
        score: its name.
        known: (N,) of the known items.
        unknown: label of a set -> (M,) of its items.
        name: of the files.
        title: of the run.
    """
    sets = {f"{label} (n={len(values)})": values for label, values in {"known": known, **unknown}.items()}
    both = torch.cat([*sets.values()]).double()
    low, high = both.min().item(), both.max().item()
    edges = torch.linspace(low, high if high > low else low + 1, N_BINS + 1, dtype=torch.double)
    shares = {label: count_shares(values, edges) for label, values in sets.items()}
    histogram = _Histogram(score, shares, edges.tolist(), compute_threshold(known))
    title = f"{title}: {score}"
    description = (
        f"Histograms of {score}, high for what is known, each in percent of its set; the line at "
        f"{histogram.threshold:.4g} {THRESHOLD_LABEL}."
    )
    return Figure(
        name,
        title,
        description,
        partial(histogram.draw, title=title),
        histogram.make_interactive(),
        histogram.make_table(title),
    )


@dataclass(frozen=True)
class _Curves:
    """ROC curves: label -> percent of the unknown and of the known accepted."""

    points: dict[str, tuple[list[float], list[float]]]

    def draw(self, axes: Any, title: str) -> None:
        for i, (label, (x, y)) in enumerate(self.points.items()):
            axes.plot(x, y, linewidth=1.3, color=COLOURS[i % len(COLOURS)], label=label)
        axes.plot([0, 100], [0, 100], "--", color=REFERENCE_COLOUR, linewidth=1, label="chance")
        axes.set(xlim=(0, 100), ylim=(0, 100.5), xlabel=UNKNOWN_TITLE, ylabel=KNOWN_TITLE)
        finish_axes(axes, title, [], 0)

    def make_interactive(self) -> dict[str, Any]:
        traces = [
            make_trace(
                label,
                "scatter",
                x=clean_numbers(x),
                y=clean_numbers(y),
                mode="lines",
                line={"color": COLOURS[i % len(COLOURS)]},
                hovertemplate="%{fullData.name}<br>%{y:.1f} % of the known, %{x:.1f} % of the unknown<extra></extra>",
            )
            for i, (label, (x, y)) in enumerate(self.points.items())
        ]
        chance = make_trace("chance", "scatter", x=[0, 100], y=[0, 100], mode="lines", hoverinfo="skip")
        chance["line"] = {"dash": "dash", "color": REFERENCE_COLOUR}
        layout = make_layout(UNKNOWN_TITLE, KNOWN_TITLE, xaxis={"range": [0, 100]}, yaxis={"range": [0, 100.5]})
        return {"data": [*traces, chance], "layout": layout}


def build_roc(scores: UnknownScores, unknown: Tensor, name: str, title: str) -> Figure:
    """Build the ROC curves of all scores against one set of unknown items (M, S): known accepted over unknown."""
    points, rows = dict[str, tuple[list[float], list[float]]](), list[list[str]]()
    for k, score in enumerate(scores.names):
        sides = scores.known[:, k], unknown[:, k]
        y, x = roc_curve(*sides)
        area = f"{auroc(*sides):.2f}"
        points[f"{score}, AUROC {area}"] = thin_curve(x, y)
        at_least = [fpr_at_recall(*sides, recall=recall, closest=False) for recall in RECALLS]
        rows.append([score, area, f"{fpr_at_recall(*sides):.2f}", *(f"{value:.2f}" for value in at_least)])
    header = ["score", "AUROC", "FPR95", *(f"unknown at {100 * recall:g} %" for recall in RECALLS)]
    note = "unknown at R %: accepted at the strictest threshold that accepts at least R % of the known"
    table = Table(title, header, rows, footnotes=(note,))
    description = f"ROC curves of every score over {len(scores.known)} known and {len(unknown)} unknown items."
    curves = _Curves(points)
    return Figure(
        name, title, description, partial(curves.draw, title=title), curves.make_interactive(), table, (5.4, 4.6)
    )


def build_score_figures(result: Result) -> list[Figure]:
    """Build the histograms of every score of a run against unknown classes."""
    if (scores := read_run_scores(result)) is None:
        return []
    run, labels = Path(result.folder or "").name, label_unknown_sets(result, scores)
    return [
        build_score_histogram(
            score,
            scores.known[:, k],
            {labels[name]: values[:, k] for name, values in scores.unknown.items()},
            make_figure_name("scores", run, score),
            run,
        )
        for k, score in enumerate(scores.names)
    ]


def build_roc_figures(result: Result) -> list[Figure]:
    """Build the ROC curves of a run against each set of unknown items."""
    if (scores := read_run_scores(result)) is None:
        return []
    run, labels = Path(result.folder or "").name, label_unknown_sets(result, scores)
    return [
        build_roc(scores, values, make_figure_name("roc", run, name), f"{run}, known against {labels[name]}")
        for name, values in scores.unknown.items()
    ]
