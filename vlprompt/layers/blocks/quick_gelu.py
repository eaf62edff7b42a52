"""QuickGELU, the activation of OpenAI's CLIP, alone and between the two maps of a frozen MLP."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.layers.frozen_maps import FrozenLinear

SLOPE = 1.702  # quick_gelu(x) = x sigmoid(SLOPE x) = silu(SLOPE x) / SLOPE


class _QuickGELU(torch.autograd.Function):
    """x sigmoid(1.702 x) as silu(1.702 x) / 1.702, whose derivative is silu's: one operation in the backward pass."""

    generate_vmap_rule = True  # for vmapped training

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        z = SLOPE * x
        return F.silu(z).mul_(1 / SLOPE), z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: Any) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None if g is None else torch.ops.aten.silu_backward(g, *ctx.saved_tensors)


def quick_gelu(x: Tensor) -> Tensor:
    """Compute x sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return _QuickGELU.apply(x)[0]  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]


class _QuickMLP(torch.autograd.Function):
    """The MLP of rows y (.., D), where SLOPE is a factor of the first product and 1 / SLOPE of the second one.

    In the derivative the two cancel. No weight has one.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor, up: Tensor, scaled_up_bias: Tensor, down: Tensor, down_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        z = torch.addmm(scaled_up_bias, y.flatten(0, -2), up.T, alpha=SLOPE)
        out = torch.addmm(down_bias, F.silu(z), down.T, alpha=1 / SLOPE)
        return out.unflatten(0, y.shape[:-1]), z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[1], inputs[3], output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        if g is None:
            return None, None, None, None, None
        up, down, z = ctx.saved_tensors
        dz = torch.ops.aten.silu_backward(g.flatten(0, -2) @ down, z)
        return (dz @ up).unflatten(0, g.shape[:-1]), None, None, None, None


@dataclass(frozen=True)
class QuickMLP:
    """y -> down(quick_gelu(up(y))) in three operations, and three backward; for weights that do not train.

    Args:
        up: weight (Dh, D).
        scaled_up_bias: SLOPE times the bias of up.
        down: weight (D, Dh).
        down_bias: (D,).
    """

    up: Tensor
    scaled_up_bias: Tensor
    down: Tensor
    down_bias: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        weights, device = (self.up, self.scaled_up_bias, self.down, self.down_bias), y.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            y, weights = y.to(dtype), [t.to(dtype) for t in weights]
        with torch.autocast(device, enabled=False):
            if not torch.is_grad_enabled():
                return _run_in_place(y, *weights)
            return _QuickMLP.apply(y, *weights)[0]  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]


def _run_in_place(y: Tensor, up: Tensor, scaled_up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    """The same without a derivative: a second tensor of that size costs more in memory pages than the activation."""
    z = torch.addmm(scaled_up_bias, y.flatten(0, -2), up.T, alpha=SLOPE)
    return torch.addmm(down_bias, F.silu(z, inplace=True), down.T, alpha=1 / SLOPE).unflatten(0, y.shape[:-1])


def build_quick_mlp(up: object, down: object) -> QuickMLP | None:
    """Join two frozen maps around a QuickGELU; None unless both have a weight and a bias that do not train."""
    if not isinstance(up, FrozenLinear) or not isinstance(down, FrozenLinear) or up.bias is None or down.bias is None:
        return None
    if any(t.requires_grad for t in (up.weight, up.bias, down.weight, down.bias)):
        return None
    return QuickMLP(up.weight, SLOPE * up.bias, down.weight, down.bias)
