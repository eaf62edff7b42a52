"""The maps of frozen blocks, as values that hold their weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

FrozenMap: TypeAlias = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class FrozenLinear:
    """y -> y W' + b, with a weight (out, in) outside of any Module."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, y: Tensor) -> Tensor:
        return F.linear(y, self.weight, self.bias)


@dataclass(frozen=True)
class FrozenScale:
    """y -> y * gain, layer scale."""

    gain: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        return y * self.gain


def freeze_linear(layer_or_weight: nn.Linear | Tensor, bias: Tensor | None = None) -> FrozenLinear:
    """Return a FrozenLinear of a layer, or of a weight and a bias."""
    if isinstance(layer_or_weight, nn.Linear):
        return FrozenLinear(layer_or_weight.weight, layer_or_weight.bias)
    return FrozenLinear(layer_or_weight, bias)
