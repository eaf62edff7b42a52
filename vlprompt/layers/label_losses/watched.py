"""A loss of labels that knows whether a method has learned by it."""

from torch import Tensor

from vlprompt.core.batch import LabelLoss


class WatchedLoss:
    """A loss of labels that remembers whether a method has asked for it.

    Args:
        label_loss: the loss.
    """

    def __init__(self, label_loss: LabelLoss):
        self.label_loss, self.is_used = label_loss, False

    def __call__(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        self.is_used = True
        return self.label_loss(logits, labels, reduction=reduction)

    def require_use(self, setting: str, method: str) -> None:
        """Raise ValueError where a method has learned without it, so that the setting would change nothing."""
        if not self.is_used:
            raise ValueError(
                f"{setting}: expected a method that learns from labels by cross-entropy, got {method}, which does not. "
                "Leave it out, or take another method."
            )
