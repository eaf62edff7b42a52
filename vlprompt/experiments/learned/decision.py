"""How the scores of a learned prompt become an answer: temperature, and the threshold of unknown classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

UNKNOWN = "unknown"  # the answer to an item whose score is below the threshold


@dataclass(frozen=True)
class Decision:
    """How logits become an answer.

    Args:
        temperature: logits are divided by it before the softmax (Guo et al., ICML 2017, arXiv:1706.04599).
        score: which score says how well an item is known; higher is better known.
        threshold: items with a lower score are answered `unknown`; None accepts all.
        facts: how temperature and threshold were chosen, on which images, and what they came to.
    """

    temperature: float = 1.0
    score: str = "msp"
    threshold: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
