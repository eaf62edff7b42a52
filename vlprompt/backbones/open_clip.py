"""open_clip's models as towers; nothing else touches its internals."""

import hashlib
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from vlprompt.backbones.images import ImageTower, ViT
from vlprompt.backbones.opaque import OpaqueText
from vlprompt.backbones.texts import TextTower, Words
from vlprompt.stage import Look
from vlprompt.tower import Block, Clip, linear, same


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


class _QuickGELU(torch.autograd.Function):
    """x sigmoid(1.702 x) as silu(1.702 x) / 1.702, whose derivative is silu's own: one operation going back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        z = 1.702 * x
        ctx.save_for_backward(z)
        return nn.functional.silu(z).mul_(1 / 1.702)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.ops.aten.silu_backward(g, *ctx.saved_tensors)


def _block(b: Any) -> Block:
    weight, bias = b.attn.in_proj_weight.detach(), b.attn.in_proj_bias.detach()
    q, k, v = (linear(*each) for each in zip(weight.chunk(3), bias.chunk(3), strict=True))
    up, down, act = b.mlp.c_fc, b.mlp.c_proj, b.mlp.gelu
    act = _QuickGELU.apply if type(act).__name__ == "QuickGELU" else act
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
    blocks = blocks_of(getattr(visual, "transformer", None))
    walkable = (
        type(visual).__name__ == "VisionTransformer" and visual.attn_pool is None and visual.pool_type in ("tok", "avg")
    )
    if not blocks or not walkable:
        return ImageTower(lambda pixels: _pooled(visual(pixels)), width, look, key, device)
    (patch, patch_w), weight = visual.patch_size, visual.conv1.weight.detach().flatten(1)
    if patch != patch_w:
        return ImageTower(lambda pixels: _pooled(visual(pixels)), width, look, key, device)
    proj = None if visual.proj is None else visual.proj.detach()

    def unfold(pixels: Tensor) -> Tensor:
        return nn.functional.unfold(pixels, patch, stride=patch).transpose(1, 2)

    def mean_of_patches(x: Tensor) -> Tensor:
        return x[:, 1:].mean(1)

    average = visual.pool_type == "avg"
    return ViT(
        blocks,
        unfold=unfold,
        embed=linear(weight),
        special=visual.class_embedding.detach()[None],
        positions=visual.positional_embedding.detach(),
        pre=visual.ln_pre,
        norm=visual.ln_post,
        pool=mean_of_patches if average else lambda x: x[:, 0],
        project=same if proj is None else lambda x: x @ proj,
        read=None if average else 1,
        norm_last=visual.final_ln_after_pool,
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
    if inner is None or tokenizer.strip_sep_token or tokenizer.tokenizer_mode:
        return None
    whole, middle = inner.encode("a"), inner.encode("a", add_special_tokens=False)
    at = next(i for i in range(len(whole)) if whole[i : i + len(middle)] == middle)
    clean = tokenizer.clean_fn
    return Words(lambda text: inner.encode(clean(text), add_special_tokens=False), tuple(whole[:at]),
                 tuple(whole[at + len(middle) :]), inner.pad_token_id or 0)  # fmt: skip


def _text(model: Any, tokenizer: Any, width: int, key: str, device: torch.device) -> TextTower | OpaqueText:
    text = getattr(model, "text", model)  # CustomTextCLIP keeps its text tower apart
    blocks, words = blocks_of(getattr(text, "transformer", None)), _words(tokenizer)
    pool = getattr(text, "pool_type", getattr(text, "text_pool_type", None))
    odd = getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False)
    known = hasattr(text, "token_embedding") and not odd
    if not known or not blocks or words is None or pool not in ("argmax", "eos", "first", "last"):
        return OpaqueText(
            lambda texts: model.encode_text(tokenizer(texts).to(device), normalize=False), width, key, device
        )
    proj = text.text_projection
    project = same if proj is None else linear(proj) if isinstance(proj, nn.Linear) else lambda x: x @ proj.detach()
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
    )


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights: what tells two towers of one shape apart."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def wrap(model: Any, tokenizer: Any, spec: str, device: str | torch.device = "cpu") -> Clip:
    """An open_clip model and its tokenizer as a Clip; the model is frozen, put in eval mode and kept out of sight."""
    device = torch.device(device)
    model = model.eval().requires_grad_(False).to(device)
    key = f"{spec}#{fingerprint(model)}"
    width = getattr(model.visual, "output_dim", None) or _probe(model, device)
    with torch.no_grad():
        scale = float(model.logit_scale.exp())
    return Clip(_image(model.visual, width, key, device), _text(model, tokenizer, width, key, device), scale, spec)


def _probe(model: Any, device: torch.device) -> int:
    with torch.no_grad():
        return _pooled(model.visual(torch.zeros(1, 3, *_look(model.visual).size, device=device))).shape[-1]
