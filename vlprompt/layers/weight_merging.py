"""Read and replace the weights of frozen maps, and merge adapters into them, at the cost of the plain tower."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import WeightedMap
from vlprompt.layers.blocks.block import Block, validate_prompt_layers
from vlprompt.layers.frozen_maps import FrozenLinear, FrozenMap

MERGEABLE_SITES = ("norm1", "q", "k", "v", "out", "norm2", "up", "gate", "down")


class MergedNorm:
    """A LayerNorm with another gain and bias."""

    def __init__(self, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None):
        self.norm, self.weight, self.bias = norm, weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.norm.normalized_shape, self.weight, self.bias, self.norm.eps)


class MergedScaleNorm:
    """A norm without bias (RMSNorm) with another gain, and a bias."""

    def __init__(self, norm: nn.Module, weight: Tensor, bias: Tensor | None):
        self.norm, self.weight, self.bias = norm, weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        y = torch.func.functional_call(self.norm, {"weight": self.weight}, x)
        return y if self.bias is None else y + self.bias


class MergedIdentity:
    """A scale and a shift in the place of a norm that a model does not have."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.weight if self.bias is None else x * self.weight + self.bias


def has_weights(frozen: object) -> bool:
    """Whether a map is a linear map or a norm with weights."""
    known = isinstance(frozen, nn.LayerNorm | FrozenLinear | MergedNorm | MergedScaleNorm) or _is_scale_norm(frozen)
    return known and getattr(frozen, "weight", None) is not None


def find_frozen_map(blocks: Sequence[Block], site: str, outer_maps: Mapping[str, FrozenMap]) -> WeightedMap:
    """Return the linear map or norm at a site of a tower.

    Args:
        blocks: the blocks of the tower.
        site: such as "3/q".
        outer_maps: the maps outside of the blocks by their sites.

    Raises:
        ValueError: for a site that the tower does not have, and one without weights.
    """
    layer, _, kind = site.rpartition("/")
    frozen: FrozenMap | None = outer_maps.get(site)
    if layer.isdecimal() and int(layer) < len(blocks) and kind in MERGEABLE_SITES:
        frozen = getattr(blocks[int(layer)], kind)
    if not has_weights(frozen):
        raise ValueError(
            f"site: expected a linear map or a norm of this tower, got {site!r}, which has no weights. Take one of "
            f"{', '.join([*outer_maps, *MERGEABLE_SITES])}, in a layer from 0 to {len(blocks) - 1}."
        )
    return cast(WeightedMap, frozen)


def replace_weights(frozen: WeightedMap, weight: Tensor, bias: Tensor | None) -> FrozenMap:
    """Return a linear map or a norm with other weights, through which gradients flow to them."""
    if isinstance(frozen, FrozenLinear):
        return FrozenLinear(weight, bias)
    norm = frozen.norm if isinstance(frozen, MergedNorm | MergedScaleNorm) else cast(nn.Module, frozen)
    return MergedNorm(norm, weight, bias) if isinstance(norm, nn.LayerNorm) else MergedScaleNorm(norm, weight, bias)


def _is_scale_norm(frozen: object) -> bool:
    """Whether a map is a norm whose only weight is its gain."""
    if not isinstance(frozen, nn.Module) or "norm" not in type(frozen).__name__.lower():
        return False
    return [(name, p.ndim) for name, p in frozen.named_parameters()] == [("weight", 1)]


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
    if isinstance(frozen, nn.Identity):
        with torch.no_grad():
            return MergedIdentity(*merge(torch.ones(()), None))
    if not has_weights(frozen):
        raise ValueError(
            f"{site}: expected a linear map or a norm, got a map without weights to merge {type(adapter).__name__} "
            "into. Take an adapter of linear maps and norms, such as LoRA or SSF."
        )
    layer = cast(WeightedMap, frozen)
    bias = getattr(layer, "bias", None)
    with torch.no_grad():
        return replace_weights(layer, *merge(layer.weight.detach(), None if bias is None else bias.detach()))


def merge_into_blocks(blocks: Sequence[Block], prompt: Prompt) -> list[Block]:
    """Return blocks with a prompt's adapters merged.

    Raises:
        ValueError: for tokens and prefixes, layers that there are not, and an adapter at a site without weights.
    """
    if len(prompt.tokens) or len(prompt.prefix):
        raise ValueError(
            "prompt: expected only adapters, got tokens or prefixes, which can't be merged into weights. "
            "Leave them out, or call the tower with the prompt."
        )
    validate_prompt_layers(prompt, len(blocks))
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
