"""Which loss of labels a training has."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
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

    loss: LossKind | None = None
    q: float = 0.7
    weight: float = 1.0
    gammas: tuple[float, float] = SeveralLabelLoss.gammas
    margin: float = SeveralLabelLoss.margin
    unknown: UnknownUse = SeveralLabelLoss.unknown

    @property
    def changed(self) -> list[str]:
        """The settings other than the default, as they are written; a method must ask for the loss to follow them."""
        named = {
            "loss" if f.name == "loss" else f"loss_{f.name}": (getattr(self, f.name), f.default) for f in fields(self)
        }
        return [f"train.{name}={value}" for name, (value, usual) in named.items() if value not in (usual, "ce")]

    def build(self, train: Split) -> LabelLoss:
        """Return the loss of a split's labels; ValueError for one of items with another kind of labels."""
        has_several = train.has_several_labels
        suited, items = (SEVERAL_LABELS, "several labels") if has_several else (ONE_LABEL, "one label each")
        if self.loss not in (None, *suited):
            raise ValueError(
                f"train.loss: expected {_list_choices(suited)} for items with {items}, got "
                f"{self.loss}. Set one of these, or leave it out."
            )
        self._require_read_settings(has_several)
        if has_several:
            kind = cast(Kind, self.loss or "bce")
            label_loss = SeveralLabelLoss(kind, self.unknown, self.gammas, self.margin, train.reading)
        else:
            label_loss = partial(generalised_cross_entropy, q=self.q) if self.loss == "gce" else F.cross_entropy
        return label_loss if self.weight == 1 else partial(_weigh, label_loss, self.weight)

    def _require_read_settings(self, has_several: bool) -> None:
        """Raise ValueError for a setting other than the default that the loss does not read."""
        kind = self.loss or ("bce" if has_several else "ce")
        readers = {"q": ("gce",), "gammas": ("asl",), "margin": ("asl",), "unknown": SEVERAL_LABELS}
        for name, kinds in readers.items():
            value = getattr(self, name)
            if kind not in kinds and value != getattr(LossSettings, name):
                told = f"expected train.loss={_list_choices(kinds)}, which reads it, got {value} with {kind}"
                raise ValueError(f"train.loss_{name}: {told}. Leave it out.")


def _list_choices(kinds: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))


def _weigh(label_loss: LabelLoss, weight: float, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    return weight * label_loss(logits, labels, reduction=reduction)
