"""Initial values, drawn from a generator on the CPU so that every device begins alike."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def make_linear(
    fan_in: int, fan_out: int, generator: torch.Generator, device: torch.device, bias: bool = True
) -> nn.Linear:
    """Make a linear layer with torch's usual initial bounds, drawn from a generator on the CPU."""
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    for tensor in (layer.weight, layer.bias) if bias else (layer.weight,):
        tensor.data.copy_((torch.rand(tensor.shape, generator=generator) * 2 - 1) * fan_in**-0.5)
    return layer.to(device)


def draw_uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw values between low and high from a generator on the CPU."""
    return (low + high) / 2 + (high - low) / 2 * (torch.rand(tuple(shape), generator=generator) * 2 - 1)
