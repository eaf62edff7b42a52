"""What stands between the linear maps of a frozen decoder layer, with backward passes that store little."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Saved(Protocol):
    """What a function saves for its backward pass."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _RootMeanSquareNorm(torch.autograd.Function):
    """`normalize_rms` with its derivative by x; stored are x and one number of each row."""

    @staticmethod
    def forward(ctx: _Saved, x: Tensor, gain: Tensor, epsilon: float):
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = inverse.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, gain, inverse)
        return (x * inverse).mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Saved, g: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, gain, inverse = ctx.saved_tensors
        dx = g * gain
        along = torch.linalg.vecdot(dx, x)[..., None].mul_(inverse.pow(3)).div_(-x.shape[-1])
        return dx.mul_(inverse).addcmul_(x, along), None, None


class _GatedProduct(torch.autograd.Function):
    """`gate_silu` with its derivative; silu(gate) is computed again instead of stored."""

    @staticmethod
    def forward(ctx: _Saved, gate: Tensor, up: Tensor):
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Saved, g: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(g * up, gate), F.silu(gate).mul_(g)


class _Rotation(torch.autograd.Function):
    """`rotate` with its derivative."""

    @staticmethod
    def forward(ctx: _Saved, x: Tensor, cos: Tensor, sin: Tensor):
        ctx.save_for_backward(cos, sin)
        return _rotate_halves(x, cos, sin.chunk(2, -1), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Saved, g: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _rotate_halves(g, cos, sin.chunk(2, -1)[::-1], 1), None, None


def _rotate_halves(x: Tensor, cos: Tensor, sines: tuple[Tensor, ...], sign: int) -> Tensor:
    (a, b), output = x.chunk(2, -1), x * cos
    c, d = output.chunk(2, -1)
    c.addcmul_(b, sines[0], value=sign)
    d.addcmul_(a, sines[1], value=-sign)
    return output


def normalize_rms(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """Divide rows x (..., D) by the root of their mean square and multiply with a frozen gain (D,).

    It can be differentiated once.
    """
    return _RootMeanSquareNorm.apply(x, gain, epsilon)  # pyright: ignore[reportReturnType]


def gate_silu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, of two tensors of one shape; it can be differentiated once."""
    return _GatedProduct.apply(gate, up)  # pyright: ignore[reportReturnType]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of queries or keys x (B, H, N, Dh) by rotary positions; it can be differentiated once.

    Args:
        x: queries or keys.
        cos: (B, 1, N, Dh).
        sin: (B, 1, N, Dh).
    """
    return _Rotation.apply(x, cos, sin)  # pyright: ignore[reportReturnType]
