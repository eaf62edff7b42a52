"""Read a library's model as frozen maps: what the adapters of all libraries share."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.layers.frozen_maps import FrozenMap


class _QuickGELU(torch.autograd.Function):
    """x sigmoid(1.702 x) as silu(1.702 x) / 1.702, whose derivative is silu's: one operation in the backward pass."""

    generate_vmap_rule = True  # for vmapped training

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
    """Compute x sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return _QuickGELU.apply(x)[0]  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]


def convert_activation(act: Any) -> FrozenMap:
    """Return a library's activation, with the QuickGELU of open_clip and transformers replaced by the faster form."""
    return quick_gelu if type(act).__name__ in ("QuickGELU", "QuickGELUActivation") else act


def build_patch_unfold(patch_size: int) -> FrozenMap:
    """Return the map from pixels (B, 3, h, w) to patches (B, N, 3 * size²), in the order of a convolution's weight."""
    return lambda pixels: nn.functional.unfold(pixels, patch_size, stride=patch_size).transpose(1, 2)


def freeze(model: Any, device: torch.device) -> Any:
    """Put a model on the device, in eval mode, without gradients, and return it."""
    return model.eval().requires_grad_(False).to(device)


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a model, without its buffers."""
    return sum(p.numel() for p in model.parameters())


def fingerprint(model: nn.Module) -> str:
    """Hash all weights of a model, to distinguish towers of one architecture."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
