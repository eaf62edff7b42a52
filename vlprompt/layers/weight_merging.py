"""Parts folded into the frozen maps that they stand beside: the same answers at the cost of the plain tower."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.core.prompt import Prompt
from vlprompt.layers.block import Block
from vlprompt.layers.frozen_maps import Affine, Map, same

MAPS = ("norm1", "q", "k", "v", "out", "norm2", "up", "gate", "down")


class Norm:
    """A LayerNorm with another gain and bias."""

    def __init__(self, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None):
        self.norm, self.weight, self.bias = norm, weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.norm.normalized_shape, self.weight, self.bias, self.norm.eps)


def fold(site: str, frozen: Any, part: Any) -> Map:
    """A map with its part in its weights, detached; ValueError where there is no weight, or the part can't be."""
    found = same if frozen is None else frozen
    norm = isinstance(found, nn.LayerNorm)
    if not hasattr(part, "merge") or not (norm or isinstance(found, Affine)):
        why = "can't be folded into weights" if not hasattr(part, "merge") else "has no weights of its own to fold into"
        what = type(part).__name__ if not hasattr(part, "merge") else f"what {site!r} stands for"
        raise ValueError(f"{what} {why} (site {site}); only updates of linear maps and norms can be, such as LoRA, SSF")
    with torch.no_grad():
        weight, bias = part.merge(found.weight.detach(), None if found.bias is None else found.bias.detach())
    return Norm(found, weight, bias) if isinstance(found, nn.LayerNorm) else Affine(weight, bias)


def merged_blocks(blocks: Sequence[Block], prompt: Prompt) -> list[Block]:
    """Blocks with the parts of a prompt folded in; ValueError for one that stands elsewhere than beside a map."""
    made = []
    for i, block in enumerate(blocks):
        mine = {site: prompt.beside[site] for site in prompt.beside if site.split("/")[0] == str(i)}
        change: dict[str, Any] = {}
        for site, part in mine.items():
            kind = site.split("/")[1]
            change[kind] = fold(site, getattr(block, kind) if kind in MAPS else None, part)
        if block.qkv is not None and any(kind in change for kind in "qkv"):
            each = [change.get(kind, getattr(block, kind)) for kind in "qkv"]
            zero = [torch.zeros(len(f.weight), device=f.weight.device, dtype=f.weight.dtype) for f in each]
            bias = None
            if any(f.bias is not None for f in each):
                bias = torch.cat([z if f.bias is None else f.bias for f, z in zip(each, zero, strict=True)])
            change["qkv"] = Affine(torch.cat([f.weight for f in each]), bias)
        made.append(replace(block, **change))
    return made
