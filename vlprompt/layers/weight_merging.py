"""Merge adapters into the weights of frozen maps: the same results at the cost of the plain tower."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from vlprompt.core.prompt import Prompt
from vlprompt.layers.block import Block
from vlprompt.layers.frozen_maps import FrozenLinear, FrozenMap

MERGEABLE_SITES = ("norm1", "q", "k", "v", "out", "norm2", "up", "gate", "down")


class MergedNorm:
    """A LayerNorm with another gain and bias."""

    def __init__(self, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None):
        self.norm, self.weight, self.bias = norm, weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.norm.normalized_shape, self.weight, self.bias, self.norm.eps)


def merge_adapter(site: str, frozen: FrozenMap | None, adapter: object) -> FrozenMap:
    """Return a frozen map with an adapter in its weights, detached.

    Args:
        site: where the adapter is, for errors.
        frozen: the map; None if the site has no map of its own.
        adapter: a module with `merge(weight, bias)`.

    Raises:
        ValueError: if the map has no weights, or the adapter can't be merged.
    """
    merge = getattr(adapter, "merge", None)
    if merge is None:
        raise ValueError(
            f"{type(adapter).__name__} can't be merged into weights (site {site}). "
            "Take an adapter of linear maps and norms, such as LoRA or SSF."
        )
    if not isinstance(frozen, nn.LayerNorm | FrozenLinear):
        raise ValueError(
            f"{site}: expected a linear map or a norm, got a map without weights to merge {type(adapter).__name__} "
            "into. Take an adapter of linear maps and norms, such as LoRA or SSF."
        )
    with torch.no_grad():
        weight, bias = merge(frozen.weight.detach(), None if frozen.bias is None else frozen.bias.detach())
    return MergedNorm(frozen, weight, bias) if isinstance(frozen, nn.LayerNorm) else FrozenLinear(weight, bias)


def merge_into_blocks(blocks: Sequence[Block], prompt: Prompt) -> list[Block]:
    """Return blocks with a prompt's adapters merged; ValueError for one at a site without weights."""
    return [_merge_into_block(block, i, prompt) for i, block in enumerate(blocks)]


def _merge_into_block(block: Block, i: int, prompt: Prompt) -> Block:
    merged = dict[str, FrozenMap]()
    for site in prompt.adapters:
        layer, _, kind = site.partition("/")
        if layer == str(i):
            frozen = getattr(block, kind) if kind in MERGEABLE_SITES else None
            merged[kind] = merge_adapter(site, frozen, prompt.adapters[site])
    if block.qkv is not None and any(kind in merged for kind in "qkv"):
        maps = [merged.get(kind, getattr(block, kind)) for kind in "qkv"]
        merged["qkv"] = _join_linear(cast(list[FrozenLinear], maps))
    return replace(block, **merged)


def _join_linear(maps: Sequence[FrozenLinear]) -> FrozenLinear:
    """Join linear maps of one input into one; a missing bias is zero if another map has one."""
    weights, biases = [f.weight for f in maps], [f.bias for f in maps]
    bias = None
    if any(b is not None for b in biases):
        zeros = [torch.zeros(len(w), device=w.device, dtype=w.dtype) for w in weights]
        bias = torch.cat([zero if b is None else b for b, zero in zip(biases, zeros, strict=True)])
    return FrozenLinear(torch.cat(weights), bias)
