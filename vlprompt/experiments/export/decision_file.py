"""The decision of a prompt beside files of another program that have no place for it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlprompt.experiments.learned.decision import Decision

DECISION_FILE = "decision.json"
DECISION_KEYS = ("temperature", "score", "threshold")


def describe_decision(decision: Decision) -> dict[str, Any]:
    """Return a decision as JSON has it, without how it was chosen; `labels` is there for several labels alone."""
    facts = {key: getattr(decision, key) for key in DECISION_KEYS}
    if decision.labels is None:
        return facts
    return facts | {"labels": asdict(decision.labels) | {"probability": decision.labels.probability}}


def write_decision(decision: Decision, temporary: Path, folder: Path) -> list[str]:
    """Write decision.json where logits need more than a softmax; return what to say of it.

    Args:
        decision: of the prompt.
        temporary: where to write.
        folder: where the file will be.
    """
    if decision.temperature == 1.0 and decision.threshold is None and decision.labels is None:
        return []
    (temporary / DECISION_FILE).write_text(json.dumps(describe_decision(decision), indent=1) + "\n")
    if decision.labels is not None:
        return [f"its logits are odds of several labels, to be read as {folder / DECISION_FILE} says"]
    threshold = "" if decision.threshold is None else ", below whose threshold of the score an answer is unknown"
    return [f"divide its logits by the temperature in {folder / DECISION_FILE}{threshold}"]
