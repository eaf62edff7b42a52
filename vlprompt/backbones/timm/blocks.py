"""Convert timm's vision transformers to block-wise towers; nothing else touches their internals."""

from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.backbones.towers.freeze import build_patch_unfold, convert_activation
from vlprompt.backbones.towers.trainable import PositionedTokens
from vlprompt.backbones.towers.vit import ViT
from vlprompt.core.images import Preprocessing
from vlprompt.core.prompt import KV
from vlprompt.layers.blocks.attention import Rows, attend
from vlprompt.layers.blocks.block import AttentionFn, Block, make_attention
from vlprompt.layers.frozen_maps import FrozenMap, FrozenScale, freeze_linear, identity

POOL_TYPES = ("token", "avg", "avgmax", "max", "map")


def build_timm_tower(
    trunk: Any, project: FrozenMap, width: int, preprocessing: Preprocessing, key: str, device: torch.device
) -> ViT | None:
    """Convert a VisionTransformer or Eva of timm; None for any other design.

    Prompt tokens are seen by every token of every block and never pooled: a mean, a maximum or an attention pool
    (SigLIP's) reads the patches, and the class and register tokens where timm pools those too. Rotary positions turn
    the patches only; prompt tokens and prefixes have none, as the class token has none.

    Args:
        trunk: timm's model, frozen and on its device.
        project: pooled (B, D), after the last norm -> (B, E).
        width: E.
        preprocessing: the preprocessing of the weights.
        key: the spec and a hash of the weights.
        device: the device of the trunk.
    """
    if type(trunk).__module__ not in ("timm.models.vision_transformer", "timm.models.eva"):
        return None
    attention, embed = _build_attention(trunk), _convert_patch_embedding(trunk)
    blocks = [block for b in trunk.blocks if (block := _convert_block(b)) is not None]
    if attention is None or embed is None or len(blocks) < len(trunk.blocks) or not _is_known_pool(trunk):
        return None
    special, positions = _read_tokens_and_positions(trunk)
    has_pooled_norm = not isinstance(trunk.fc_norm, nn.Identity)
    is_norm_after_pool = isinstance(trunk.norm, nn.Identity) and has_pooled_norm

    def norm_and_project(x: Tensor) -> Tensor:
        return project(trunk.fc_norm(x))

    return ViT(
        blocks,
        unfold=build_patch_unfold(trunk.patch_embed.patch_size[0]),
        embed=embed,
        special_tokens=special,
        position_embeddings=positions,
        pre_norm=trunk.norm_pre,
        norm=trunk.fc_norm if is_norm_after_pool else trunk.norm,
        pool=trunk.pool,
        project=norm_and_project if has_pooled_norm and not is_norm_after_pool else project,
        n_pooled_tokens=1 if trunk.global_pool == "token" else None,
        is_norm_after_pool=is_norm_after_pool,
        feature_dim=width,
        patch_size=trunk.patch_embed.patch_size[0],
        grid=tuple(trunk.patch_embed.grid_size),
        preprocessing=preprocessing,
        key=key,
        device=device,
        attention=None if getattr(trunk, "rope", None) is None else attention,
        positioned_tokens=_find_positioned_tokens(trunk),
    )


def _is_known_pool(trunk: Any) -> bool:
    pool = trunk.attn_pool
    is_standard = pool is None or (type(pool).__name__ == "AttentionPoolLatent" and pool.pos_embed is None)
    return is_standard and trunk.global_pool in POOL_TYPES


def _convert_patch_embedding(trunk: Any) -> FrozenMap | None:
    """Return the map of unfolded square patches; None if patches overlap, are padded or have a norm."""
    patch_embed = trunk.patch_embed
    conv = getattr(patch_embed, "proj", None)
    if type(patch_embed).__name__ != "PatchEmbed" or not _is_identity(patch_embed.norm):
        return None
    if not isinstance(conv, nn.Conv2d) or conv.in_channels != 3:
        return None
    if patch_embed.patch_size[0] != patch_embed.patch_size[1] or patch_embed.dynamic_img_pad:
        return None
    return freeze_linear(conv.weight.detach().flatten(1), None if conv.bias is None else conv.bias.detach())


def _read_tokens_and_positions(trunk: Any) -> tuple[Tensor, Tensor]:
    """Return class and register tokens (S, D), and a position for each token (S + N, D), zeros if it has none."""
    n, d = trunk.patch_embed.num_patches, trunk.embed_dim
    zeros = trunk.patch_embed.proj.weight.new_zeros
    tokens = [t[0] for t in (trunk.cls_token, trunk.reg_token) if t is not None]
    special = torch.cat(tokens) if tokens else zeros(0, d)
    positions = zeros(n, d) if trunk.pos_embed is None else trunk.pos_embed[0]
    return special.detach(), torch.cat([zeros(len(special) + n - len(positions), d), positions]).detach()


def _find_positioned_tokens(trunk: Any) -> PositionedTokens:
    if trunk.pos_embed is None:
        return "none"
    return "patches" if trunk.pos_embed.shape[1] == trunk.patch_embed.num_patches else "all"


def _is_identity(module: Any) -> bool:
    return module is None or isinstance(module, nn.Identity)


def _convert_block(b: Any) -> Block | None:
    """Return a pre-norm block as frozen maps; None for parallel blocks, query norms, shared keys or gated attention."""
    if type(b).__name__ not in ("Block", "EvaBlock"):
        return None
    attn, mlp = b.attn, b.mlp
    if type(attn).__name__ not in ("Attention", "EvaAttention", "AttentionRope"):
        return None
    maps, hidden = _convert_qkv(attn), _convert_gate_and_up(mlp)
    has_extras = not all(_is_identity(getattr(attn, name, None)) for name in ("q_norm", "k_norm", "gate"))
    if has_extras or maps is None or hidden is None:
        return None
    q, k, v, qkv = maps
    gate, up = hidden
    return Block(
        attn.num_heads,
        mlp.fc2.out_features,
        mlp.fc2.in_features,
        b.norm1,
        q,
        k,
        v,
        freeze_linear(attn.proj),
        b.norm2,
        up,
        convert_activation(mlp.act),
        freeze_linear(mlp.fc2),
        _convert_layer_scale(b, 1),
        _convert_layer_scale(b, 2),
        qkv,
        gate=gate,
        attn_inner_norm=identity if _is_identity(getattr(attn, "norm", None)) else attn.norm,
        mlp_inner_norm=identity if _is_identity(getattr(mlp, "norm", None)) else mlp.norm,
    )


def _convert_layer_scale(b: Any, i: int) -> FrozenMap:
    """Return a block's layer scale: ViT's ls1 and ls2, Eva's gamma_1 and gamma_2."""
    gamma = getattr(b, f"gamma_{i}", None) if hasattr(b, f"gamma_{i}") else getattr(getattr(b, f"ls{i}"), "gamma", None)
    return identity if gamma is None else FrozenScale(gamma)


def _convert_qkv(attn: Any) -> tuple[FrozenMap, FrozenMap, FrozenMap, FrozenMap | None] | None:
    """Return the maps to q, k and v, and the packed one if timm has it; None if their width is not the block's."""
    if attn.qkv is None:
        q, k, v = attn.q_proj, attn.k_proj, attn.v_proj
        is_square = all(layer.out_features == layer.in_features for layer in (q, k, v))
        return (freeze_linear(q), freeze_linear(k), freeze_linear(v), None) if is_square else None
    weight, bias = attn.qkv.weight.detach(), attn.qkv.bias
    if weight.shape[0] != 3 * weight.shape[1]:
        return None
    if getattr(attn, "q_bias", None) is not None:  # Eva has separate biases, and none of keys
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    bias = None if bias is None else bias.detach()
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = (freeze_linear(w, b) for w, b in zip(weight.chunk(3), biases, strict=True))
    return q, k, v, freeze_linear(weight, bias)


def _convert_gate_and_up(mlp: Any) -> tuple[FrozenMap | None, FrozenMap] | None:
    """Return the maps (gate, up) into the hidden layer: Mlp has no gate, GluMlp packs both, SwiGLU separates them."""
    kind = type(mlp).__name__
    if kind == "SwiGLU":
        return freeze_linear(mlp.fc1_g), freeze_linear(mlp.fc1_x)
    if kind not in ("Mlp", "GluMlp") or not isinstance(mlp.fc1, nn.Linear):
        return None
    if kind == "Mlp":
        return None, freeze_linear(mlp.fc1)
    bias = (None, None) if mlp.fc1.bias is None else mlp.fc1.bias.detach().chunk(2)
    first, second = (freeze_linear(w, b) for w, b in zip(mlp.fc1.weight.detach().chunk(2), bias, strict=True))
    return (second, first) if mlp.gate_last else (first, second)


def _build_attention(trunk: Any) -> AttentionFn | None:
    """Return the attention between all tokens, rotary if the trunk's is; None if each layer has other angles."""
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return make_attention(causal=False)
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat

    has_fixed_grid = not trunk.dynamic_img_size and hasattr(rope, "feat_shape")
    angles = rope.get_embed() if has_fixed_grid else rope.get_embed(shape=trunk.patch_embed.grid_size)
    options = {"half": True} if getattr(trunk.blocks[0].attn, "rotate_half", False) else {}  # not in older timm
    if angles.ndim != 2:  # (N, 2 * Dh), sines first; RoPE-mixed has other angles for each layer and head
        return None
    angles = angles.detach()
    zero_angle = torch.arange(angles.shape[1], device=angles.device) >= angles.shape[1] // 2
    zero_angle = zero_angle.to(angles.dtype)[None]

    def attend_rotary(q: Tensor, k: Tensor, v: Tensor, prefix: KV | None, positions: Rows) -> Tensor:
        """Rotate the last N tokens, the patches, but not the class, register and prompt tokens before them."""
        table = torch.cat([zero_angle.expand(k.shape[2] - len(angles), -1), angles])
        q = apply_rot_embed_cat(q, table if positions is None else table[positions], **options)
        return attend(q.to(v.dtype), apply_rot_embed_cat(k, table, **options).to(v.dtype), v, prefix)

    return attend_rotary
