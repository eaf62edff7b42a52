"""timm's vision transformers as walked towers; nothing else touches their internals."""

from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.backbones.towers.freeze import activation, patches
from vlprompt.backbones.towers.image import ViT
from vlprompt.core.images import Look
from vlprompt.core.prompt import KV
from vlprompt.layers.attention import attend
from vlprompt.layers.block import Attend, Block, everyone
from vlprompt.layers.frozen_maps import Map, Scale, linear, same

POOLS = ("token", "avg", "avgmax", "max", "map")


def timm_image(trunk: Any, project: Map, width: int, look: Look, key: str, device: torch.device) -> ViT | None:
    """A VisionTransformer or Eva of timm, frozen and on its device, as a tower; None where its design is another one.

    project: what the trunk pooled, (B, D) after its last norm -> (B, E). Prompt rows are seen by every row of every
    block and never pooled: a mean, a maximum or an attention pool (SigLIP's) reads the patches, and the class and
    register rows where timm pools those too. Rotary positions turn the patch rows only; prompt rows and prefixes have
    none, as the class row has none.
    """
    if type(trunk).__module__ not in ("timm.models.vision_transformer", "timm.models.eva"):
        return None
    attention, embed = _attention(trunk), _plain_patches(trunk)
    blocks = [block for b in trunk.blocks if (block := _block(b)) is not None]
    pool = trunk.attn_pool
    odd_pool = pool is not None and (type(pool).__name__ != "AttentionPoolLatent" or pool.pos_embed is not None)
    unknown = len(blocks) < len(trunk.blocks) or trunk.global_pool not in POOLS or odd_pool
    if attention is None or embed is None or unknown:
        return None
    special, positions = _rows(trunk)
    late = isinstance(trunk.norm, nn.Identity) and not isinstance(trunk.fc_norm, nn.Identity)
    return ViT(
        blocks,
        unfold=patches(trunk.patch_embed.patch_size[0]),
        embed=embed,
        special=special,
        positions=positions,
        pre=trunk.norm_pre,
        norm=trunk.fc_norm if late else trunk.norm,
        pool=trunk.pool,
        project=project if late or isinstance(trunk.fc_norm, nn.Identity) else lambda x: project(trunk.fc_norm(x)),
        read=1 if trunk.global_pool == "token" else None,
        norm_last=late,
        width=width,
        patch=trunk.patch_embed.patch_size[0],
        grid=tuple(trunk.patch_embed.grid_size),
        look=look,
        key=key,
        device=device,
        attention=None if getattr(trunk, "rope", None) is None else attention,
    )


def _plain_patches(trunk: Any) -> Map | None:
    """The map of unfolded square patches; None where they overlap, are padded, or are normalised by themselves."""
    cut = trunk.patch_embed
    conv = getattr(cut, "proj", None)
    if type(cut).__name__ != "PatchEmbed" or not isinstance(conv, nn.Conv2d) or not _absent(cut.norm):
        return None
    if cut.patch_size[0] != cut.patch_size[1] or cut.dynamic_img_pad or conv.in_channels != 3:
        return None
    return linear(conv.weight.detach().flatten(1), None if conv.bias is None else conv.bias.detach())


def _rows(trunk: Any) -> tuple[Tensor, Tensor]:
    """Class and register tokens (S, D), and a position for each row (S + N, D), nought where a row has none."""
    n, d = trunk.patch_embed.num_patches, trunk.embed_dim
    nothing = trunk.patch_embed.proj.weight.new_zeros
    tokens = [t[0] for t in (trunk.cls_token, trunk.reg_token) if t is not None]
    special = torch.cat(tokens) if tokens else nothing(0, d)
    at = nothing(n, d) if trunk.pos_embed is None else trunk.pos_embed[0]
    return special.detach(), torch.cat([nothing(len(special) + n - len(at), d), at]).detach()


def _absent(module: Any) -> bool:
    return module is None or isinstance(module, nn.Identity)


def _block(b: Any) -> Block | None:
    """A pre-norm block; None where queries are normalised, keys are shared, or attention is gated."""
    attn, mlp = b.attn, b.mlp
    if type(b).__name__ not in ("Block", "EvaBlock"):
        return None
    if type(attn).__name__ not in ("Attention", "EvaAttention", "AttentionRope"):
        return None
    odd = [getattr(attn, name, None) for name in ("q_norm", "k_norm", "gate")]
    maps, hidden = _projections(attn), _hidden(mlp)
    if not all(_absent(o) for o in odd) or maps is None or hidden is None:
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
        linear(attn.proj),
        b.norm2,
        up,
        activation(mlp.act),
        linear(mlp.fc2),
        _scale(b, 1),
        _scale(b, 2),
        qkv,
        gate=gate,
        inner=same if _absent(getattr(attn, "norm", None)) else attn.norm,
        mid=same if _absent(getattr(mlp, "norm", None)) else mlp.norm,
    )


def _scale(b: Any, i: int) -> Map:
    """Layer scale: ViT's ls1 and ls2, Eva's gamma_1 and gamma_2."""
    gamma = getattr(b, f"gamma_{i}", None) if hasattr(b, f"gamma_{i}") else getattr(getattr(b, f"ls{i}"), "gamma", None)
    return same if gamma is None else Scale(gamma)


def _projections(attn: Any) -> tuple[Map, Map, Map, Map | None] | None:
    """Maps to q, k and v, and the packed one where timm has it; None where their width is not the block's."""
    if attn.qkv is None:
        each = [attn.q_proj, attn.k_proj, attn.v_proj]
        same_width = all(f.out_features == f.in_features for f in each)
        return (linear(each[0]), linear(each[1]), linear(each[2]), None) if same_width else None
    weight, bias = attn.qkv.weight.detach(), attn.qkv.bias
    if weight.shape[0] != 3 * weight.shape[1]:
        return None
    if getattr(attn, "q_bias", None) is not None:  # Eva keeps them apart; its keys have none
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    q, k, v = (
        linear(w, b)
        for w, b in zip(weight.chunk(3), (None,) * 3 if bias is None else bias.detach().chunk(3), strict=True)
    )
    return q, k, v, linear(weight, None if bias is None else bias.detach())


def _hidden(mlp: Any) -> tuple[Map | None, Map] | None:
    """Maps (gate, up) into the hidden rows: Mlp has no gate, GluMlp packs both, SwiGLU has them apart."""
    kind = type(mlp).__name__
    if kind == "SwiGLU":
        return linear(mlp.fc1_g), linear(mlp.fc1_x)
    if kind not in ("Mlp", "GluMlp") or not isinstance(mlp.fc1, nn.Linear):
        return None
    if kind == "Mlp":
        return None, linear(mlp.fc1)
    bias = (None, None) if mlp.fc1.bias is None else mlp.fc1.bias.detach().chunk(2)
    first, second = (linear(w, b) for w, b in zip(mlp.fc1.weight.detach().chunk(2), bias, strict=True))
    return (second, first) if mlp.gate_last else (first, second)


def _attention(trunk: Any) -> Attend | None:
    """Attention between all rows, with rotary positions where the trunk has them; None where each layer has its own."""
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return everyone(causal=False)
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat

    whole = not trunk.dynamic_img_size and hasattr(rope, "feat_shape")
    turns = rope.get_embed() if whole else rope.get_embed(shape=trunk.patch_embed.grid_size)  # (N, 2 * Dh), sines first
    options = {"half": True} if getattr(trunk.blocks[0].attn, "rotate_half", False) else {}  # older timm has one form
    if turns.ndim != 2:  # mixed: each layer and head turns by itself
        return None
    turns = turns.detach()
    still = (torch.arange(turns.shape[1], device=turns.device) >= turns.shape[1] // 2).to(turns.dtype)[None]

    def turned(q: Tensor, k: Tensor, v: Tensor, first: KV | None, rows: Tensor | None) -> Tensor:
        """The last N rows are patches, which are turned; class, register and prompt rows before them are not."""
        table = torch.cat([still.expand(k.shape[2] - len(turns), -1), turns])
        q = apply_rot_embed_cat(q, table if rows is None else table[rows], **options)
        return attend(q.to(v.dtype), apply_rot_embed_cat(k, table, **options).to(v.dtype), v, first)

    return turned
