"""Figures of what a run answered: confusion matrices, and reliability diagrams."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vlprompt.metrics import confusion_matrix, reliability
from vlprompt.results.plots.figure import Figure, make_figure_name
from vlprompt.results.plots.interactive import REFERENCE_COLOUR, clean_numbers, make_heatmap, make_layout, make_trace
from vlprompt.results.plots.shots import COLOURS, build_colormap, list_shades
from vlprompt.results.run_folder import Result, RunFolder
from vlprompt.results.tables.formats import Table, render_csv
from vlprompt.results.test_answers import TestAnswers

MAX_CLASSES, MAX_PAIRS, N_BINS = 40, 50, 15
NO_ANSWER = "(no answer)"


def count_confusions(answers: TestAnswers) -> Tensor:
    """Return how often each class (row) was answered as each (column): (C, C), with a column more for no answer."""
    return confusion_matrix(answers.predicted, answers.labels, len(answers.names))


def find_confused_pairs(answers: TestAnswers) -> list[tuple[str, str, int, float]]:
    """Return (class, answered class, items, percent of the class's items), the most frequent first."""
    counts = count_confusions(answers)
    totals, names = counts.sum(1).tolist(), [*answers.names, NO_ANSWER]
    wrong = [(i, j, int(counts[i, j])) for i, j in counts.nonzero().tolist() if i != j]
    wrong.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    return [(names[i], names[j], count, 100 * count / totals[i]) for i, j, count in wrong]


def write_confusion_csv(answers: TestAnswers) -> str:
    """Return the whole matrix of counts as CSV, a line per class."""
    counts = count_confusions(answers).tolist()
    columns = ["class", *[*answers.names, NO_ANSWER][: len(counts[0])]]
    labels = [f"{i} {name}" if columns.count(name) > 1 else name for i, name in enumerate(columns)]
    return render_csv(
        [dict(zip(labels, [n, *line], strict=True)) for n, line in zip(answers.names, counts, strict=True)], labels
    )


def _choose_classes(counts: Tensor) -> list[int]:
    """Return the classes to draw: all, or those of the most confused pairs."""
    n = len(counts)
    if n <= MAX_CLASSES:
        return list(range(n))
    wrong = counts[:, :n].clone()
    wrong.fill_diagonal_(0)
    chosen: list[int] = []
    for index in wrong.flatten().argsort(descending=True, stable=True).tolist():
        pair = [i for i in dict.fromkeys(divmod(index, n)) if i not in chosen]
        if len(chosen) + len(pair) > MAX_CLASSES:
            break
        chosen += pair
    return sorted(chosen)


def _draw_matrix(axes: Any, cells: Sequence[Sequence[float]], columns: Sequence[str], rows: Sequence[str]) -> None:
    image = axes.imshow(cells, cmap=build_colormap(0.6, 0.85), vmin=0, vmax=100)
    size = 8 if len(rows) <= 15 else 5
    axes.set_xticks(range(len(columns)), [name[:24] for name in columns], rotation=90, fontsize=size)
    axes.set_yticks(range(len(rows)), [name[:24] for name in rows], fontsize=size)
    for y, line in enumerate(cells if len(rows) <= 15 else []):
        for x, value in enumerate(line):
            if value >= 0.5:
                colour = "white" if value > 70 else "black"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xlabel("answered")
    axes.set_ylabel("true class")
    axes.figure.colorbar(image, ax=axes, label="% of the class's items", fraction=0.046)


def _build_pair_table(answers: TestAnswers, title: str) -> Table:
    pairs = find_confused_pairs(answers)
    return Table(
        f"{title}: most confused pairs",
        ["class", "answered as", "items", "% of the class"],
        [[a, b, str(n), f"{percent:.1f}"] for a, b, n, percent in pairs[:MAX_PAIRS]],
        left_columns=("answered as",),
        footnotes=(f"{len(pairs)} pairs, of which {MAX_PAIRS} are listed",) if len(pairs) > MAX_PAIRS else (),
    )


def build_confusion(answers: TestAnswers, name: str, title: str) -> Figure:
    """Build the confusion matrix in percent of each true class; of more than 40 classes the most confused ones."""
    counts = count_confusions(answers)
    classes = _choose_classes(counts)
    columns = [*classes, *range(len(answers.names), counts.shape[1])]
    names = [*answers.names, NO_ANSWER]
    shares = 100 * counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    cells = [[float(shares[i, j]) for j in columns] for i in classes]
    items = [[int(counts[i, j]) for j in columns] for i in classes]
    rows, heads = [names[i] for i in classes], [names[j] for j in columns]
    is_part = len(classes) < len(answers.names)
    shown = f"{len(classes)} most confused of {len(answers.names)} classes" if is_part else f"{len(classes)} classes"
    layout = make_layout("answered", "true class")
    interactive = make_heatmap(
        cells,
        heads,
        rows,
        layout,
        zmin=0,
        zmax=100,
        colorscale=list_shades(0.6, 0.85),
        customdata=items,
        hovertemplate="%{y} as %{x}: %{z:.1f} %, %{customdata} items<extra></extra>",
    )

    def draw(axes: Any) -> None:
        _draw_matrix(axes, cells, heads, rows)
        axes.set_title(f"{title}: {shown}", fontsize=9)

    description = f"Confusion matrix of {shown}, each row in percent of its class; the table has the pairs."
    return Figure(name, title, description, draw, interactive, _build_pair_table(answers, title), (7.0, 6.2))


def compute_reliability(answers: TestAnswers, n_bins: int = N_BINS) -> list[tuple[int, float, float]]:
    """Return (items, mean probability, percent right) of each bin (lower, upper] of the predicted probability."""
    columns = reliability(answers.probabilities, answers.predicted == answers.labels, n_bins)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def compute_answer_calibration_error(bins: Sequence[tuple[int, float, float]]) -> float:
    """Return the expected calibration error of bins, in percent: that of `metrics.calibration_error`."""
    return sum(n * abs(right - confidence) for n, confidence, right in bins) / sum(n for n, _, _ in bins)


def _make_interactive_reliability(
    filled: Sequence[tuple[int, int, float, float]], left: Sequence[float], width: float
) -> dict[str, Any]:
    bars = make_trace(
        "share right",
        "bar",
        x=clean_numbers([low + width / 2 for low in left]),
        y=clean_numbers([b[3] for b in filled]),
        width=width,
        marker={"color": COLOURS[0]},
        text=[f"n={b[1]}, mean probability {b[2]:.1f} %" for b in filled],
        textposition="none",
        hovertemplate="%{y:.1f} % right<br>%{text}<extra></extra>",
    )
    diagonal = make_trace("calibrated", "scatter", x=[0, 100], y=[0, 100], mode="lines", hoverinfo="skip")
    diagonal["line"] = {"dash": "dash", "color": REFERENCE_COLOUR}
    layout = make_layout("predicted probability, %", "share right, %", xaxis={"range": [0, 100]})
    return {"data": [bars, diagonal], "layout": layout}


def build_reliability(answers: TestAnswers, name: str, title: str) -> Figure:
    """Build a reliability diagram: percent right over the mean probability of each bin (Guo et al., ICML 2017)."""
    bins = compute_reliability(answers)
    error = compute_answer_calibration_error(bins)
    filled = [(i, *b) for i, b in enumerate(bins) if b[0]]
    left = [100 * i / len(bins) for i, *_ in filled]
    width = 100 / len(bins)
    rows = [
        [f"({low:.0f}, {low + width:.0f}]", str(n), f"{confidence:.1f}", f"{right:.1f}"]
        for low, (_, n, confidence, right) in zip(left, filled, strict=True)
    ]
    table = Table(title, ["probability, %", "items", "mean probability, %", "right, %"], rows)

    def draw(axes: Any) -> None:
        axes.bar(left, [b[3] for b in filled], width, align="edge", color=COLOURS[0], edgecolor="white", label="right")
        axes.plot([b[2] for b in filled], [b[3] for b in filled], "o", color=COLOURS[2], markersize=4, label="bin mean")
        axes.plot([0, 100], [0, 100], "--", color=REFERENCE_COLOUR, label="calibrated")
        axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="predicted probability, %", ylabel="share right, %")
        axes.set_title(f"{title}: ECE {error:.1f} %, n={len(answers.labels)}", fontsize=9)
        axes.legend(fontsize=8, loc="upper left")

    description = f"Reliability in {len(bins)} bins of probability; expected calibration error {error:.2f} %."
    return Figure(name, title, description, draw, _make_interactive_reliability(filled, left, width), table, (5.2, 4.4))


def read_run_answers(result: Result) -> Mapping[str, TestAnswers]:
    """Return the answers of a run by test; none for a result without a folder."""
    return RunFolder(Path(result.folder)).read_answers() if result.folder else {}


def _iter_answers(result: Result) -> Iterator[tuple[str, str, TestAnswers]]:
    """Yield run, test and answers of every test that has any."""
    for test, answers in read_run_answers(result).items():
        if len(answers.labels):
            yield Path(result.folder or "").name, test, answers


def build_confusion_figures(result: Result) -> list[Figure]:
    """Build the confusion matrix of every test of a run."""
    return [
        build_confusion(answers, make_figure_name("confusion", run, test), f"{run}, {test}")
        for run, test, answers in _iter_answers(result)
    ]


def build_reliability_figures(result: Result) -> list[Figure]:
    """Build the reliability diagram of every test of a run."""
    return [
        build_reliability(answers, make_figure_name("reliability", run, test), f"{run}, {test}")
        for run, test, answers in _iter_answers(result)
    ]
