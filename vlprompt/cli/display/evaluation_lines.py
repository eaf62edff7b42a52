"""Lines of what a test came to: metrics, decision, calibration, unknown classes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlprompt.experiments.evaluation import Evaluation
    from vlprompt.experiments.learned.decision import Decision
    from vlprompt.experiments.prediction_scores import PredictionScores

NATS_OR_SHARES = ("nll", "brier")  # no percentages: shown with more decimals


def format_evaluation(evaluation: "Evaluation") -> Iterator[str]:
    """Yield the lines of an evaluation."""
    from vlprompt.results.tables.formats import OTHER_UNITS

    for name, value in evaluation.metrics.items():
        yield f"{name:18} {value:.2f} {OTHER_UNITS.get(name, '')}".rstrip()
    yield from format_decision(evaluation.decision)
    if evaluation.calibration:
        yield ""
        yield from _format_table("on the test", evaluation.calibration)
    if evaluation.unknown:
        yield ""
        yield from _format_table("score", evaluation.unknown)
    yield from evaluation.notes


def format_decision(decision: "Decision") -> Iterator[str]:
    """Yield what was chosen, and on which items; nothing for a prompt without a decision."""
    facts: Mapping[str, Any] = decision.facts
    if decision.temperature != 1:
        yield f"{'temperature':18} {decision.temperature:.4g}"
    if decision.labels is not None:
        yield f"{'labels above':18} {decision.labels}"
    if decision.threshold is not None:
        yield f"{'threshold':18} {decision.threshold:.6g} of {decision.score}"
    for kind in ("validation", "unknown"):
        if (items := facts.get(kind)) is not None:
            yield f"chosen on {items['items']} {kind} items: the split {items['part']} of {items['dataset']}"
            yield from (f"({note})" for note in (items.get("note"),) if note)
    if "coverage" in facts:
        shares = {"accepted": "coverage", "right of these": "accepted_accuracy", "unknown accepted": "unknown_accepted"}
        yield "there " + ", ".join(f"{facts[key]:.2f} % {text}" for text, key in shares.items() if key in facts)


def _format_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    columns = list(next(iter(rows.values())))
    yield f"{title:12}" + "".join(f"{name:>16}" for name in columns)
    for name, values in rows.items():
        cells = (f"{values[key]:.4f}" if key in NATS_OR_SHARES else f"{values[key]:.2f}" for key in columns)
        yield f"{name:12}" + "".join(f"{cell:>16}" for cell in cells)


def format_prediction_scores(scores: "PredictionScores") -> Iterator[str]:
    """Yield the lines of what predictions came to, and of how they differ from others."""
    if scores.intervals:
        yield f"{'':18}{'first':>10}{'second':>10}{'difference':>12}  interval"
    for name, value in scores.values.items():
        digits = 4 if name in NATS_OR_SHARES else 2
        if name not in scores.intervals:
            yield f"{name:18} {value:.{digits}f}"
            continue
        interval, other = scores.intervals[name], scores.other_values[name]
        limits = f"[{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"
        yield f"{name:18}{value:10.{digits}f}{other:10.{digits}f}{interval.difference:+12.{digits}f}  {limits}"
    if (test := scores.test) is not None:
        yield (
            f"McNemar: {test.only_first} items only the first has right, {test.only_second} only the second, "
            f"p = {test.p:.3g}"
        )
    for name, rows in scores.tables.items():
        yield ""
        yield name
        yield from _format_rows(rows)
    yield from scores.notes


def _format_rows(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Yield rows of texts and numbers as columns."""
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    table = [list(rows[0]), *cells] if rows else []
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    is_text = [isinstance(value, str) for value in rows[0].values()] if rows else []
    for line in table:
        padded = (c.ljust(w) if text else c.rjust(w) for c, w, text in zip(line, widths, is_text, strict=True))
        yield "  ".join(padded).rstrip()
