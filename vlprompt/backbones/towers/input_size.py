"""Check image sizes that a tower was not trained with, and interpolate its position embeddings."""

import torch
from einops import rearrange
from torch import Tensor, nn

from vlprompt.core.images import Preprocessing
from vlprompt.layers.frozen_maps import FrozenMap

Size = tuple[int, int]


def format_size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def check_width(
    net: FrozenMap,
    width: int,
    old_preprocessing: Preprocessing,
    new_preprocessing: Preprocessing,
    device: torch.device,
    spec: str,
) -> None:
    """Check that an opaque network accepts images of a new size.

    Args:
        net: pixels (B, 3, h, w) -> features (B, width).
        width: the width of the features that the tower was loaded with.
        old_preprocessing: the preprocessing of the tower.
        new_preprocessing: the preprocessing to check.
        device: the device of the network.
        spec: the backbone's spec, for the message.

    Raises:
        ValueError: if the network fails or computes features of another width.
    """
    if new_preprocessing.size == old_preprocessing.size:
        return
    try:
        with torch.no_grad():
            new_width = net(torch.zeros(1, 3, *new_preprocessing.size, device=device)).shape[-1]
    except (RuntimeError, AssertionError):  # libraries raise either
        new_width = None
    if new_width != width:
        old_size, new_size = format_size(old_preprocessing.size), format_size(new_preprocessing.size)
        raise ValueError(
            f"preprocess.size: expected a size for which {spec} computes features of width {width}, as for {old_size} "
            f"pixels, got {new_size} with {f'width {new_width}' if new_width else 'no features'}. "
            "Leave preprocess.size out, or use a ViT."
        )


def check_patch_multiple(size: Size, patch_size: int, spec: str) -> None:
    """Raise ValueError unless the size (height, width) is a multiple of the patch size."""
    if any(side < patch_size or side % patch_size for side in size):
        raise ValueError(
            f"preprocess.size: expected multiples of {patch_size}, the patch size of {spec}, got {format_size(size)}. "
            f"Set preprocess.size to multiples of {patch_size}."
        )


def interpolate_positions(positions: Tensor, grid: Size, new_grid: Size) -> Tensor:
    """Interpolate position embeddings to another grid of patches (bicubic, antialiased, in float32), as timm does.

    The authors of ViT interpolate bilinearly.

    Args:
        positions: (h * w, D).
        grid: (h, w) of the positions.
        new_grid: (h, w) of the result.
    """
    table = rearrange(positions.float(), "(h w) d -> 1 d h w", h=grid[0])
    resized = nn.functional.interpolate(table, size=new_grid, mode="bicubic", antialias=True)
    return rearrange(resized, "1 d h w -> (h w) d").to(positions.dtype)


def check_finite(features: Tensor, spec: str) -> None:
    """Raise ValueError for features with NaN or infinite values."""
    if not features.isfinite().all():
        raise ValueError(
            f"{spec}: expected finite features, got NaN or infinite values. Its weights are broken; get others."
        )
