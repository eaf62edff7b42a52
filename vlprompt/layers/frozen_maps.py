"""The maps that a frozen block is made of, as values that hold their weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

Map = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Affine:
    """y -> y W' + b, with the weight (out, in) held apart from any Module."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, y: Tensor) -> Tensor:
        return F.linear(y, self.weight, self.bias)


@dataclass(frozen=True)
class Scale:
    """y -> y * gain, layer scale."""

    gain: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        return y * self.gain


def linear(layer_or_weight: nn.Linear | Tensor, bias: Tensor | None = None) -> Affine:
    if isinstance(layer_or_weight, nn.Linear):
        return Affine(layer_or_weight.weight, layer_or_weight.bias)
    return Affine(layer_or_weight, bias)
