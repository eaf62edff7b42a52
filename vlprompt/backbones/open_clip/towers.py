"""Convert open_clip's models to towers; nothing else touches its internals."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.backbones.timm.blocks import build_timm_tower
from vlprompt.backbones.towers.attention_pooled import AttentionPooledTower
from vlprompt.backbones.towers.freeze import (
    PROBE_TEXT,
    build_patch_unfold,
    convert_activation,
    count_parameters,
    freeze,
    identify,
)
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.backbones.towers.opaque import OpaqueTextTower
from vlprompt.backbones.towers.text import TransformerTextTower
from vlprompt.backbones.towers.text_tokenizer import TextTokenizer, wrap_hf_tokenizer
from vlprompt.backbones.towers.vit import ViT
from vlprompt.core.images import Preprocessing
from vlprompt.core.towers import Clip
from vlprompt.layers.attention_pool import AttentionPool
from vlprompt.layers.blocks.block import Block
from vlprompt.layers.frozen_maps import FrozenMap, freeze_linear, identity

OPENAI_PIXELS = {  # as in open_clip.constants, without the seconds that open_clip takes to import
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


def convert_blocks(transformer: Any) -> list[Block] | None:
    """Return the blocks of open_clip's Transformer as frozen maps; None for blocks of another design."""
    blocks = getattr(transformer, "resblocks", None)
    if blocks is None or not all(_is_standard_block(b) for b in blocks):
        return None
    return [_convert_block(b) for b in blocks]


def _is_standard_block(block: Any) -> bool:
    """Whether it is a pre-norm block with one packed projection and no norm of queries, heads or hidden rows."""
    attn = getattr(block, "attn", None)
    if getattr(attn, "in_proj_weight", None) is None or not hasattr(attn, "out_proj"):
        return False
    norms = [(block, "ln_attn"), (block.mlp, "ln"), (attn, "ln_q"), (attn, "ln_inner")]
    extras = [(attn, "logit_scale"), (attn, "head_scale"), (block, "ln_1_kv"), (block, "bias_k")]
    return all(isinstance(getattr(owner, name, None), nn.Identity | None) for owner, name in norms) and all(
        getattr(owner, name, None) is None for owner, name in extras
    )


def _convert_block(b: Any) -> Block:
    weight, bias = b.attn.in_proj_weight.detach(), b.attn.in_proj_bias.detach()
    q, k, v = (freeze_linear(*part) for part in zip(weight.chunk(3), bias.chunk(3), strict=True))
    up, down, activation = b.mlp.c_fc, b.mlp.c_proj, convert_activation(b.mlp.gelu)
    return Block(
        b.attn.num_heads,
        up.in_features,
        up.out_features,
        b.ln_1,
        q,
        k,
        v,
        freeze_linear(b.attn.out_proj),
        b.ln_2,
        freeze_linear(up),
        activation,
        freeze_linear(down),
        b.ls_1,
        b.ls_2,
        freeze_linear(weight, bias),
    )


def _read_preprocessing(visual: Any) -> Preprocessing:
    config: dict[str, Any] = {**OPENAI_PIXELS, **(getattr(visual, "preprocess_cfg", None) or {})}
    size = config.get("size", visual.image_size)
    size = (size, size) if isinstance(size, int) else tuple(size)
    interpolation, resize = config.get("interpolation", "bicubic"), config.get("resize_mode", "shortest")
    interpolation = "bicubic" if interpolation == "random" else interpolation
    if resize not in ("shortest", "squash"):
        raise ValueError(
            f"resize_mode of the model: expected 'shortest' or 'squash', got {resize!r}. Use another model."
        )
    return Preprocessing(size, tuple(config["mean"]), tuple(config["std"]), interpolation, resize)


def _build_image_tower(visual: Any, width: int, key: str, device: torch.device) -> ImageTower:
    preprocessing, known = _read_preprocessing(visual), None
    if type(visual).__name__ == "TimmModel" and "pool" not in dict(visual.head.named_children()):
        known = build_timm_tower(visual.trunk, _convert_head(visual), width, preprocessing, key, device)
    elif type(visual).__name__ == "VisionTransformer":
        known = _build_vit(visual, width, preprocessing, key, device)
    elif type(visual).__name__ == "ModifiedResNet":
        known = _build_resnet(visual, width, preprocessing, key, device)
    tower = known or ImageTower(lambda pixels: _select_pooled(visual(pixels)), width, preprocessing, key, device)
    tower.n_parameters = count_parameters(visual)
    return tower


def _convert_head(visual: Any) -> FrozenMap:
    """Return what follows a timm trunk's pool: a linear map if it amounts to one, which copies can train."""
    modules = [getattr(visual.trunk, "head", nn.Identity()), *visual.head.children()]
    layers = [module for module in modules if not isinstance(module, nn.Identity)]
    if not layers:
        return identity
    if len(layers) == 1 and isinstance(layers[0], nn.Linear):
        return freeze_linear(layers[0])
    return lambda x: visual.head(visual.trunk.head(x))


def _build_vit(visual: Any, width: int, preprocessing: Preprocessing, key: str, device: torch.device) -> ViT | None:
    blocks, (patch, patch_w), pool = convert_blocks(visual.transformer), visual.patch_size, visual.attn_pool
    has_attention_pool, is_average = pool is not None, visual.pool_type == "avg"  # an attention pool: CoCa
    known_pools = ("tok",) if has_attention_pool else ("tok", "avg")
    if not blocks or patch != patch_w or visual.pool_type not in known_pools:
        return None

    def pool_by_attention(x: Tensor) -> Tensor:
        """CoCa's feature: its first query attends to all tokens but the prompt's."""
        query = pool.ln_q(pool.query[:1]).expand(len(x), -1, -1)
        return visual.ln_post(pool.attn(query, x, x, need_weights=False)[0])[:, 0]

    def pool_patches(x: Tensor) -> Tensor:
        return x[:, 1:].mean(1)

    def pool_class_token(x: Tensor) -> Tensor:
        return x[:, 0]

    return ViT(
        blocks,
        unfold=build_patch_unfold(patch),
        embed=freeze_linear(visual.conv1.weight.detach().flatten(1)),
        special_tokens=visual.class_embedding.detach()[None],
        position_embeddings=visual.positional_embedding.detach(),
        pre_norm=visual.ln_pre,
        norm=pool.ln_k if has_attention_pool else visual.ln_post,
        pool=pool_by_attention if has_attention_pool else pool_patches if is_average else pool_class_token,
        project=identity if visual.proj is None else freeze_linear(visual.proj.detach().T),
        n_pooled_tokens=None if is_average or has_attention_pool else 1,
        is_norm_after_pool=visual.final_ln_after_pool and not has_attention_pool,
        feature_dim=width,
        patch_size=patch,
        grid=visual.grid_size,
        preprocessing=preprocessing,
        key=key,
        device=device,
    )


def _build_resnet(
    visual: Any, width: int, preprocessing: Preprocessing, key: str, device: torch.device
) -> AttentionPooledTower:
    pool, stages = visual.attnpool, (visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4)

    def run_trunk(pixels: Tensor) -> Tensor:
        for stage in stages:
            pixels = stage(pixels)
        return pixels

    maps = (freeze_linear(one) for one in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj))
    rows = AttentionPool(pool.num_heads, pool.positional_embedding.detach(), *maps)
    return AttentionPooledTower(run_trunk, pool, rows, width, preprocessing, key, device)


def _select_pooled(features: Any) -> Tensor:
    return features[0] if isinstance(features, tuple) else features  # CoCa also returns its tokens


def _convert_tokenizer(tokenizer: Any) -> TextTokenizer | None:
    if hasattr(tokenizer, "sot_token_id"):  # open_clip's own byte-pair tokenizer
        ends = (tokenizer.sot_token_id,), (tokenizer.eot_token_id,)
        return TextTokenizer(tokenizer.encode, *ends, tokenizer.decoder.__getitem__)
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None or tokenizer.tokenizer_mode:
        return None
    text_tokenizer = wrap_hf_tokenizer(inner, tokenizer.clean_fn)
    if not tokenizer.strip_sep_token:
        return text_tokenizer
    end_ids = tuple(0 if i == inner.sep_token_id else i for i in text_tokenizer.end_ids)  # CLIPA ends texts with 0
    return replace(text_tokenizer, end_ids=end_ids)


def _is_end_token_pooled(text: Any, tokenizer: Any, text_tokenizer: TextTokenizer, pooling: str) -> bool:
    """Whether the position that the library pools, of a certain id or of the highest, is the end of a text."""
    if pooling == "eos":
        return text_tokenizer.end_ids == (getattr(text, "eos_id", getattr(text, "text_eos_id", None)),)
    inner = getattr(
        tokenizer, "tokenizer", None
    )  # "argmax" pools the highest id, which is the end token of open_clip's tokenizer
    return pooling != "argmax" or inner is None or text_tokenizer.end_ids == (max(inner.get_vocab().values()),)


def _build_text_tower(
    model: Any, tokenizer: Any, width: int, key: str, device: torch.device
) -> TransformerTextTower | OpaqueTextTower:
    text = getattr(model, "text", model)  # CustomTextCLIP has a separate text tower
    blocks, text_tokenizer = convert_blocks(getattr(text, "transformer", None)), _convert_tokenizer(tokenizer)
    class_token = getattr(text, "cls_emb", None)  # CoCa pools it, whatever pool_type says
    pool_type = getattr(text, "pool_type", getattr(text, "text_pool_type", None))
    pool = str(pool_type) if class_token is None else "last"
    if not blocks or text_tokenizer is None or not _is_standard_text_tower(text, tokenizer, text_tokenizer, pool):

        def encode(texts: list[str]) -> Tensor:
            return model.encode_text(tokenizer(texts).to(device), normalize=False)

        return OpaqueTextTower(encode, width, key, device)
    proj = text.text_projection
    project = identity if proj is None else freeze_linear(proj if isinstance(proj, nn.Linear) else proj.detach().T)
    return TransformerTextTower(
        blocks,
        tokenizer=text_tokenizer,
        token_embeddings=text.token_embedding.weight.detach(),
        positions=text.positional_embedding.detach(),
        norm=text.ln_final,
        project=project,
        is_causal=text.attn_mask is not None,
        pooling="end" if pool in ("argmax", "eos") else pool,
        feature_dim=width,
        key=key,
        device=device,
        class_token=None if class_token is None else class_token.detach(),
    )


def _is_standard_text_tower(text: Any, tokenizer: Any, text_tokenizer: TextTokenizer, pool: str) -> bool:
    """Whether our text tower computes the same: no padding masks, and a pool whose position it knows."""
    if not hasattr(text, "token_embedding") or pool not in ("argmax", "eos", "first", "last"):
        return False
    if getattr(text, "use_pad_mask", False) or getattr(text, "correct_cls_mask", False):
        return False
    if getattr(text, "cls_emb", None) is not None and text_tokenizer.pad_id != text.pad_id:
        return False
    return _is_end_token_pooled(text, tokenizer, text_tokenizer, pool)


def wrap_clip(model: Any, tokenizer: Any, spec: str, device: str | torch.device = "cpu") -> Clip:
    """Freeze an open_clip model and wrap it and its tokenizer as a Clip."""
    device = torch.device(device)
    model = freeze(model, device, spec)
    facts = {"texts": _tokenize_probe(tokenizer), "is_causal": _has_causal_texts(model)}
    key = f"{spec}#{identify(model, _read_preprocessing(model.visual), **facts)}"
    width = getattr(model.visual, "output_dim", None) or _probe_width(model, device)
    bias = getattr(model, "logit_bias", None)
    image = _build_image_tower(model.visual, width, key, device)
    text = _build_text_tower(model, tokenizer, width, key, device)
    bias, scale = 0.0 if bias is None else float(bias), float(model.logit_scale.exp())
    return Clip(image, text, scale, spec, bias, count_parameters(model))


def wrap_image_tower(visual: Any, spec: str, device: str | torch.device = "cpu") -> ImageTower:
    """Freeze an open_clip ViT and wrap it as an image tower, without its projection into the joint space."""
    device, visual.proj = torch.device(device), None
    visual = freeze(visual, device, spec)
    key = f"{spec}#{identify(visual, _read_preprocessing(visual))}"
    return _build_image_tower(visual, visual.ln_post.normalized_shape[0], key, device)


def _tokenize_probe(tokenizer: Any) -> list[list[int]]:
    """Return the token ids of a text that shows how a tokenizer cleans, ends and pads texts."""
    return torch.as_tensor(tokenizer([PROBE_TEXT])).tolist()


def _has_causal_texts(model: Any) -> bool:
    return getattr(getattr(model, "text", model), "attn_mask", None) is not None


def _probe_width(model: Any, device: torch.device) -> int:
    pixels = torch.zeros(1, 3, *_read_preprocessing(model.visual).size, device=device)
    with torch.no_grad():
        return _select_pooled(model.visual(pixels)).shape[-1]
