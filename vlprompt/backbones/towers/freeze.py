"""A library's model read as frozen maps: what all adapters do to one."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.layers.frozen_maps import Map


class _QuickGELU(torch.autograd.Function):
    """x sigmoid(1.702 x) as silu(1.702 x) / 1.702, whose derivative is silu's own: one operation going back."""

    generate_vmap_rule = True  # settings that train side by side

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        z = 1.702 * x
        return nn.functional.silu(z).mul_(1 / 1.702), z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.ops.aten.silu_backward(g, *ctx.saved_tensors)


def quick_gelu(x: Tensor) -> Tensor:
    return _QuickGELU.apply(x)[0]  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]


def activation(act: Any) -> Map:
    """A library's activation; QuickGELU, as open_clip and transformers write it, in its faster form."""
    return quick_gelu if type(act).__name__ in ("QuickGELU", "QuickGELUActivation") else act


def patches(size: int) -> Map:
    """Pixels (B, 3, h, w) -> patches (B, N, 3 * size²), in the order of a convolution's weight."""
    return lambda pixels: nn.functional.unfold(pixels, size, stride=size).transpose(1, 2)


def freeze(model: Any, device: torch.device) -> Any:
    """The model on the device, in eval mode, without gradients."""
    return model.eval().requires_grad_(False).to(device)


def count(model: nn.Module) -> int:
    """The parameters of a model; buffers are none."""
    return sum(p.numel() for p in model.parameters())


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights: what tells two towers of one shape apart."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
