"""Lines of what a test came to: metrics, decision, calibration, unknown classes."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlprompt.experiments.evaluation import Evaluation
    from vlprompt.experiments.learned.decision import Decision

NATS_OR_SHARES = ("nll", "brier")  # no percentages: shown with more decimals


def format_evaluation(evaluation: "Evaluation") -> Iterator[str]:
    """Yield the lines of an evaluation."""
    for name, value in evaluation.metrics.items():
        yield f"{name:18} {value:.2f}"
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
