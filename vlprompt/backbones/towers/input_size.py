"""Image sizes that a tower's weights were not made for: what it can take, and positions that are interpolated."""

import torch
from torch import Tensor, nn

from vlprompt.core.images import Look
from vlprompt.layers.frozen_maps import Map

Pair = tuple[int, int]


def by(sides: Pair) -> str:
    return f"{sides[0]}x{sides[1]}"


def check_width(net: Map, width: int, old: Look, new: Look, device: torch.device, spec: str) -> None:
    """ValueError where a network that can't be looked into makes no features (B, width) of images of the new size."""
    if new.size == old.size:
        return
    try:
        with torch.no_grad():
            found = net(torch.zeros(1, 3, *new.size, device=device)).shape[-1]
    except (RuntimeError, AssertionError):  # libraries raise either
        found = None
    if found != width:
        raise ValueError(
            f"the image tower of {spec} makes {f'features {found} wide' if found else 'nothing'} of {by(new.size)} "
            f"pixels, and features {width} wide of {by(old.size)}: leave look.size as it is, or take a ViT"
        )


def check_patches(size: Pair, patch: int, spec: str) -> None:
    """ValueError for a size that is no multiple of the patch."""
    if any(side < patch or side % patch for side in size):
        raise ValueError(
            f"images of {by(size)} pixels can't be cut into patches of {patch}, as the image tower of {spec} does; "
            f"take multiples of {patch}"
        )


def stretched(positions: Tensor, grid: Pair, to: Pair) -> Tensor:
    """Positions (h * w, D) of a grid of patches, interpolated to another grid (bicubic, antialiased, in float32).

    It is what timm does; the authors of ViT interpolate too, bilinear.
    """
    table = positions.float().unflatten(0, grid).permute(2, 0, 1)[None]  # (1, D, h, w)
    found = nn.functional.interpolate(table, size=to, mode="bicubic", antialias=True)[0]
    return found.permute(1, 2, 0).flatten(0, 1).to(positions.dtype)


def check_numbers(features: Tensor, spec: str) -> None:
    """ValueError for features that are no numbers."""
    if not features.isfinite().all():
        raise ValueError(f"{spec} makes features that are no numbers: its weights are broken, get others")
