"""open_clip's models as towers; nothing else touches its internals."""

from dataclasses import replace
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from vlprompt.backbones.timm.blocks import timm_image
from vlprompt.backbones.towers.freeze import activation, count, fingerprint, freeze, patches
from vlprompt.backbones.towers.image import ImageTower, ViT
from vlprompt.backbones.towers.opaque import OpaqueText
from vlprompt.backbones.towers.text import TextTower, Words, whole_words
from vlprompt.core.images import Look
from vlprompt.core.towers import Clip
from vlprompt.layers.block import Block
from vlprompt.layers.frozen_maps import Map, linear, same


def blocks_of(transformer: Any) -> list[Block] | None:
    """The blocks of open_clip's Transformer as named maps; None where they are of another design."""
    return (
        [_block(b) for b in transformer.resblocks]
        if all(_plain(b) for b in getattr(transformer, "resblocks", [None]))
        else None
    )


def _plain(block: Any) -> bool:
    """A pre-norm block with ordinary attention: one packed projection, no norm of queries, heads or hidden rows."""
    attn = getattr(block, "attn", None)
    if getattr(attn, "in_proj_weight", None) is None or not hasattr(attn, "out_proj"):
        return False
    odd = ("ln_1_kv", "bias_k")
    extra = [
        getattr(block, "ln_attn", None),
        getattr(block.mlp, "ln", None),
        getattr(attn, "ln_q", None),
        getattr(attn, "ln_inner", None),
    ]
    plain = all(e is None or isinstance(e, nn.Identity) for e in extra) and getattr(attn, "logit_scale", None) is None
    return (
        plain
        and getattr(attn, "head_scale", None) is None
        and not any(getattr(block, name, None) is not None for name in odd)
    )


def _block(b: Any) -> Block:
    weight, bias = b.attn.in_proj_weight.detach(), b.attn.in_proj_bias.detach()
    q, k, v = (linear(*each) for each in zip(weight.chunk(3), bias.chunk(3), strict=True))
    up, down, act = b.mlp.c_fc, b.mlp.c_proj, activation(b.mlp.gelu)
    return Block(b.attn.num_heads, up.in_features, up.out_features, b.ln_1, q, k, v, linear(b.attn.out_proj),
                 b.ln_2, linear(up), act, linear(down), b.ls_1, b.ls_2, linear(weight, bias))  # fmt: skip


def _look(visual: Any) -> Look:
    config: dict[str, Any] = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}
    config |= getattr(visual, "preprocess_cfg", None) or {}
    size = config.get("size", visual.image_size)
    size = (size, size) if isinstance(size, int) else tuple(size)
    interpolation = config.get("interpolation", "bicubic")
    if interpolation == "random":
        interpolation = "bicubic"
    if config.get("resize_mode", "shortest") not in ("shortest", "squash"):
        raise ValueError(f"this model resizes by {config['resize_mode']!r}; vlprompt knows 'shortest' and 'squash'")
    return Look(size, tuple(config["mean"]), tuple(config["std"]), interpolation, config.get("resize_mode", "shortest"))


def _image(visual: Any, width: int, key: str, device: torch.device) -> ImageTower:
    look = _look(visual)
    walked = None
    if type(visual).__name__ == "TimmModel" and "pool" not in dict(visual.head.named_children()):
        walked = timm_image(visual.trunk, _head(visual), width, look, key, device)
    elif type(visual).__name__ == "VisionTransformer":
        walked = _vit(visual, width, look, key, device)
    tower = walked or ImageTower(lambda pixels: _pooled(visual(pixels)), width, look, key, device)
    tower.size = count(visual)
    return tower


def _head(visual: Any) -> Map:
    """What follows a timm trunk's pool: one linear map where it amounts to that, which a copy can train."""
    steps = [
        m
        for m in (getattr(visual.trunk, "head", nn.Identity()), *visual.head.children())
        if not isinstance(m, nn.Identity)
    ]
    if len(steps) <= 1 and all(isinstance(m, nn.Linear) for m in steps):
        return linear(steps[0]) if steps else same
    return lambda x: visual.head(visual.trunk.head(x))


def _vit(visual: Any, width: int, look: Look, key: str, device: torch.device) -> ViT | None:
    blocks, (patch, patch_w), pool = blocks_of(visual.transformer), visual.patch_size, visual.attn_pool
    attended = pool is not None  # CoCa
    if not blocks or patch != patch_w or visual.pool_type not in (("tok",) if attended else ("tok", "avg")):
        return None
    proj, average = None if visual.proj is None else visual.proj.detach(), visual.pool_type == "avg"

    def first_query(x: Tensor) -> Tensor:
        """The only one of CoCa's queries that its feature is made of, over all rows but the prompt's."""
        query = pool.ln_q(pool.query[:1]).expand(len(x), -1, -1)
        return visual.ln_post(pool.attn(query, x, x, need_weights=False)[0])[:, 0]

    def mean_of_patches(x: Tensor) -> Tensor:
        return x[:, 1:].mean(1)

    return ViT(
        blocks,
        unfold=patches(patch),
        embed=linear(visual.conv1.weight.detach().flatten(1)),
        special=visual.class_embedding.detach()[None],
        positions=visual.positional_embedding.detach(),
        pre=visual.ln_pre,
        norm=pool.ln_k if attended else visual.ln_post,
        pool=first_query if attended else mean_of_patches if average else lambda x: x[:, 0],
        project=same if proj is None else linear(proj.T),
        read=None if average or attended else 1,
        norm_last=visual.final_ln_after_pool and not attended,
        width=width,
        patch=patch,
        grid=visual.grid_size,
        look=look,
        key=key,
        device=device,
    )


def _pooled(features: Any) -> Tensor:
    return features[0] if isinstance(features, tuple) else features  # CoCa's tower also gives its tokens


def _words(tokenizer: Any) -> Words | None:
    if hasattr(tokenizer, "sot_token_id"):  # open_clip's own byte-pair tokenizer
        return Words(tokenizer.encode, (tokenizer.sot_token_id,), (tokenizer.eot_token_id,))
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None or tokenizer.tokenizer_mode:
        return None
    words = whole_words(inner, tokenizer.clean_fn)
    if tokenizer.strip_sep_token:  # CLIPA: the end of a text is token 0
        words = replace(words, end=tuple(0 if i == inner.sep_token_id else i for i in words.end))
    return words


def _reads_the_end(text: Any, tokenizer: Any, words: Words, pool: str | None) -> bool:
    """Whether the pool, which looks for a token, finds the one that ends a text."""
    if pool == "eos":
        return words.end == (getattr(text, "eos_id", getattr(text, "text_eos_id", None)),)
    inner = getattr(tokenizer, "tokenizer", None)  # "argmax" looks for the highest: open_clip's own end is
    return pool != "argmax" or inner is None or words.end == (max(inner.get_vocab().values()),)


def _text(model: Any, tokenizer: Any, width: int, key: str, device: torch.device) -> TextTower | OpaqueText:
    text = getattr(model, "text", model)  # CustomTextCLIP keeps its text tower apart
    blocks, words = blocks_of(getattr(text, "transformer", None)), _words(tokenizer)
    tail = getattr(text, "cls_emb", None)  # CoCa's class token is read whatever pool_type says
    pool = "last" if tail is not None else getattr(text, "pool_type", getattr(text, "text_pool_type", None))
    odd = getattr(text, "use_pad_mask", False) or getattr(text, "correct_cls_mask", False)
    odd = odd or (tail is not None and words is not None and words.pad != text.pad_id)
    known = hasattr(text, "token_embedding") and not odd
    known = known and words is not None and _reads_the_end(text, tokenizer, words, pool)
    if not known or not blocks or words is None or pool not in ("argmax", "eos", "first", "last"):
        encode = lambda texts: model.encode_text(tokenizer(texts).to(device), normalize=False)  # noqa: E731
        return OpaqueText(encode, width, key, device)
    proj = text.text_projection
    project = same if proj is None else linear(proj if isinstance(proj, nn.Linear) else proj.detach().T)
    return TextTower(
        blocks,
        words=words,
        table=text.token_embedding.weight.detach(),
        positions=text.positional_embedding.detach(),
        norm=text.ln_final,
        project=project,
        causal=text.attn_mask is not None,
        read="end" if pool in ("argmax", "eos") else pool,
        width=width,
        key=key,
        device=device,
        tail=None if tail is None else tail.detach(),
    )


def wrap(model: Any, tokenizer: Any, spec: str, device: str | torch.device = "cpu") -> Clip:
    """An open_clip model and its tokenizer as a Clip; the model is frozen, put in eval mode and kept out of sight."""
    device = torch.device(device)
    model = freeze(model, device)
    key = f"{spec}#{fingerprint(model)}"
    width = getattr(model.visual, "output_dim", None) or _probe(model, device)
    bias = getattr(model, "logit_bias", None)
    image, text = _image(model.visual, width, key, device), _text(model, tokenizer, width, key, device)
    bias, size = 0.0 if bias is None else float(bias), count(model)
    return Clip(image, text, float(model.logit_scale.exp()), spec, bias, size)


def wrap_image(visual: Any, spec: str, device: str | torch.device = "cpu") -> ImageTower:
    """An open_clip ViT alone, frozen, without the projection into a space that it shares with texts."""
    device, visual.proj = torch.device(device), None
    visual = freeze(visual, device)
    return _image(visual, visual.ln_post.normalized_shape[0], f"{spec}#{fingerprint(visual)}", device)


def _probe(model: Any, device: torch.device) -> int:
    with torch.no_grad():
        return _pooled(model.visual(torch.zeros(1, 3, *_look(model.visual).size, device=device))).shape[-1]
