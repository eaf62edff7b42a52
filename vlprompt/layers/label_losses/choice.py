"""Which loss of labels a training has."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, cast, get_args

import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import LabelLoss, Split
from vlprompt.layers.label_losses.one_label import generalised_cross_entropy
from vlprompt.layers.label_losses.several_labels import Kind, SeveralLabelLoss, UnknownUse

OneLabelKind = Literal["ce", "gce"]
LossKind = Literal[OneLabelKind, Kind]
ONE_LABEL, SEVERAL_LABELS = get_args(OneLabelKind), get_args(Kind)


@dataclass(frozen=True)
class LossSettings:
    """The settings of losses of labels, as `TrainConfig` has them; arguments as there."""

    loss: LossKind | None
    q: float
    weight: float
    gammas: tuple[float, float]
    margin: float
    unknown: UnknownUse

    def build(self, train: Split) -> LabelLoss:
        """Return the loss of a split's labels; ValueError for one of items with another kind of labels."""
        has_several = train.has_several_labels
        suited, items = (SEVERAL_LABELS, "several labels") if has_several else (ONE_LABEL, "one label each")
        if self.loss not in (None, *suited):
            raise ValueError(
                f"train.loss: expected {', '.join(suited[:-1])} or {suited[-1]} for items with {items}, got "
                f"{self.loss}. Set one of these, or leave it out."
            )
        if has_several:
            kind = cast(Kind, self.loss or "bce")
            label_loss = SeveralLabelLoss(kind, self.unknown, self.gammas, self.margin, train.reading)
        else:
            label_loss = partial(generalised_cross_entropy, q=self.q) if self.loss == "gce" else F.cross_entropy
        return label_loss if self.weight == 1 else partial(_weigh, label_loss, self.weight)


def _weigh(label_loss: LabelLoss, weight: float, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    return weight * label_loss(logits, labels, reduction=reduction)
