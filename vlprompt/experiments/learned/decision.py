"""How logits of a learned prompt become an answer: temperature, threshold of unknown classes, threshold of labels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from vlprompt.core.batch import Reading
from vlprompt.engine.label_scores import DEFAULT_THRESHOLD, is_label
from vlprompt.layers.label_losses.several_labels import read_odds

UNKNOWN = "unknown"  # the answer to an item whose score is below the threshold


@dataclass(frozen=True)
class LabelDecision:
    """How logits become several labels: an item has those whose odds exceed the threshold.

    Args:
        reading: of logits as the odds of each label, as `Split` has it.
        threshold: the logarithm of odds.
        n_validation: on how many validation items it was chosen; 0 for none: it is then at a probability of one half.
    """

    reading: Reading = "sigmoid"
    threshold: float = DEFAULT_THRESHOLD
    n_validation: int = 0
    is_given: ClassVar[bool] = False  # whether a user has named the threshold, so that it holds among any classes

    @property
    def probability(self) -> float:
        """The probability that a label must exceed."""
        return 1 / (1 + math.exp(-self.threshold)) if self.threshold > -700 else 0.0

    def __str__(self) -> str:
        chosen = f"chosen on {self.n_validation} validation items" if self.n_validation else "not chosen on any items"
        chosen = "as given" if self.is_given else chosen
        return f"{self.probability:.6g} (log odds {self.threshold:.4g}) by the {self.reading} reading, {chosen}"

    def apply(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability of each label (B, C), in float64, and whether it is given (B, C), as tests do it."""
        odds = read_odds(logits, self.reading)
        return odds.double().sigmoid(), is_label(odds, self.threshold)

    def with_probability(self, probability: float) -> "LabelDecision":
        """Return the decision of a user who names the probability (0 to 1, both excluded) that a label must exceed."""
        return GivenLabelDecision(self.reading, math.log(probability) - math.log1p(-probability))


@dataclass(frozen=True)
class GivenLabelDecision(LabelDecision):
    """How logits become several labels, by a threshold that a user has named; arguments as of `LabelDecision`."""

    is_given: ClassVar[bool] = True


@dataclass(frozen=True)
class Decision:
    """How logits become an answer.

    Args:
        temperature: logits are divided by it before the softmax (Guo et al., ICML 2017, arXiv:1706.04599).
        score: which score says how well an item is known; higher is better known.
        threshold: items with a lower score are answered `unknown`; None accepts all.
        facts: how temperature and threshold were chosen, on which images, and what they came to.
        labels: how logits become several labels, for a prompt that was learned from items with several; None for one
            class an item.
    """

    temperature: float = 1.0
    score: str = "msp"
    threshold: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    labels: LabelDecision | None = None
