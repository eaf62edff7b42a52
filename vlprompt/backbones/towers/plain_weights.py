"""Read the weights and settings of towers of plain pre-norm transformers, to write them as another library's model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlprompt.backbones.towers.vit import ViT
from vlprompt.layers.blocks.block import Block
from vlprompt.layers.blocks.quick_gelu import quick_gelu
from vlprompt.layers.frozen_maps import FrozenMap, identity
from vlprompt.layers.weight_merging import MergedNorm

BLOCK_MAPS = ("norm1", "qkv", "out", "norm2", "up", "down")


class BlockSettings(NamedTuple):
    """What all blocks of a plain transformer share.

    Args:
        n_heads: H.
        mlp_ratio: hidden width over width.
        activation: "gelu" or "quick_gelu".
        eps: of its norms.
        has_layer_scale: whether its branches are scaled.
    """

    n_heads: int
    mlp_ratio: float
    activation: str
    eps: float
    has_layer_scale: bool


def read_block_settings(blocks: Sequence[Block]) -> BlockSettings:
    """Return what all blocks share; ValueError for gates, inner norms, unknown activations, or blocks that differ."""
    settings = {_read_settings(block) for block in blocks}
    if len(settings) != 1:
        raise ValueError("its blocks differ in their settings")
    return settings.pop()


def _read_settings(block: Block) -> BlockSettings:
    if block.gate is not None or block.attn_inner_norm is not identity or block.mlp_inner_norm is not identity:
        raise ValueError("its blocks have gates or inner norms")
    scales = [hasattr(scale, "gain") for scale in (block.layer_scale1, block.layer_scale2)]
    return BlockSettings(
        block.n_heads, block.hidden_dim / block.dim, _name_activation(block.act), read_eps(block.norm1), all(scales)
    )


def _name_activation(act: FrozenMap) -> str:
    if act is quick_gelu:
        return "quick_gelu"
    if isinstance(act, nn.GELU) and act.approximate == "none":
        return "gelu"
    raise ValueError(f"its activation is {type(act).__name__}")


def read_eps(norm: FrozenMap) -> float:
    """Return the eps of a LayerNorm; ValueError for another norm."""
    layer = norm.norm if isinstance(norm, MergedNorm) else norm
    if not isinstance(layer, nn.LayerNorm):
        raise ValueError(f"its norm is {type(layer).__name__}")
    return layer.eps


def read_map(frozen: FrozenMap, prefix: str) -> dict[str, Tensor]:
    """Return weight and bias of a linear map or a norm, as prefix.weight and prefix.bias; ValueError for others."""
    weight, bias = getattr(frozen, "weight", None), getattr(frozen, "bias", None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"its map {prefix} has no weights of its own")
    tensors = {f"{prefix}.weight": weight, f"{prefix}.bias": bias}
    return {name: t.detach() for name, t in tensors.items() if t is not None}


def read_blocks(blocks: Sequence[Block], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the weights of blocks by another library's names.

    Args:
        blocks: the blocks.
        names: format of a parameter's name by ours, such as {"norm1.weight": "blocks.{i}.norm1.weight", ...}; it has
            those of BLOCK_MAPS with .weight and .bias, scale1 and scale2.
    """
    tensors = dict[str, Tensor]()
    for i, block in enumerate(blocks):
        tensors |= {names[name].format(i=i): tensor for name, tensor in _read_block(block).items()}
    return tensors


def _read_block(block: Block) -> dict[str, Tensor]:
    tensors = dict[str, Tensor]()
    for name in ("norm1", "norm2", "out", "up", "down"):
        tensors |= read_map(getattr(block, name), name)
    parts = [read_map(getattr(block, name), name) for name in "qkv"]
    weights = [part[f"{name}.weight"] for name, part in zip("qkv", parts, strict=True)]
    biases = [part.get(f"{name}.bias") for name, part in zip("qkv", parts, strict=True)]
    zeros = weights[0].new_zeros(weights[0].shape[0])
    tensors["qkv.weight"] = torch.cat(weights)
    tensors["qkv.bias"] = torch.cat([zeros if bias is None else bias for bias in biases])
    for number, scale in enumerate((block.layer_scale1, block.layer_scale2), 1):
        if (gain := getattr(scale, "gain", None)) is not None:
            tensors[f"scale{number}"] = gain.detach()
    return tensors


def read_patch_weights(tower: ViT) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the convolution of the patches (D, 3, p, p), its bias (D,) or None, and the positions (S + N, D)."""
    tensors, p = read_map(tower.embed, "patch"), tower.patch_size
    return tensors["patch.weight"].reshape(-1, 3, p, p), tensors.get("patch.bias"), tower.position_embeddings.detach()


def read_projection(project: FrozenMap, width: int) -> Tensor | None:
    """Return the weight (E, D) of a projection without bias, None for none; ValueError for another map."""
    if project is identity:
        return None
    tensors = read_map(project, "projection")
    if "projection.bias" in tensors or tensors["projection.weight"].shape[1] != width:
        raise ValueError("its projection is no plain matrix")
    return tensors["projection.weight"]


def describe_unknown_tower(tower: Any) -> str | None:
    """Return why an image tower is no plain ViT with learned positions and a class token; None for one that is."""
    if not isinstance(tower, ViT):
        return "its image tower is no ViT with known blocks"
    if tower.has_rotary_positions or tower.positioned_tokens != "all":
        return "its image tower has rotary positions, or tokens without positions"
    if tower.n_special_tokens != 1:
        return f"its image tower has {tower.n_special_tokens} class and register tokens"
    return None
