"""Write a CLIP of two plain transformers as open_clip's own model, and read it back by open_clip."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from vlprompt.backbones.open_clip.byte_pairs import BytePairTokenizer
from vlprompt.backbones.towers.plain_weights import (
    BLOCK_MAPS,
    BlockSettings,
    describe_unknown_tower,
    read_block_settings,
    read_blocks,
    read_eps,
    read_map,
    read_patch_weights,
    read_projection,
)
from vlprompt.backbones.towers.text import TransformerTextTower
from vlprompt.backbones.towers.vit import ViT
from vlprompt.core.towers import Clip
from vlprompt.layers.frozen_maps import identity

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
DEFAULT_EPS = 1e-5
SAMPLE_TEXT = "A photo of 12 snow-leopards, 3 cafés & the Boeing 737's wing."
OPEN_CLIP_MAPS = {
    "norm1": "ln_1",
    "qkv.weight": "attn.in_proj_weight",
    "qkv.bias": "attn.in_proj_bias",
    "out": "attn.out_proj",
    "norm2": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
    "scale1": "ls_1.gamma",
    "scale2": "ls_2.gamma",
}


class OpenClipModel(NamedTuple):
    """What open_clip makes of a folder.

    Args:
        encode_pictures: PIL images -> un-normalised features (B, E), by its own preprocessing.
        encode_texts: texts -> un-normalised features (C, E), by its own tokenizer.
        scale: of its logits.
    """

    encode_pictures: Callable[[Sequence[Image.Image]], Tensor]
    encode_texts: Callable[[Sequence[str]], Tensor]
    scale: float


class OpenClipFiles(NamedTuple):
    """A CLIP as open_clip has it.

    Args:
        config: architecture and preprocessing.
        state: weights by open_clip's names, shared with the CLIP where they can be.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]


def describe_open_clip(clip: Clip) -> OpenClipFiles:
    """Describe a CLIP as open_clip has it; ValueError, with the reason, for one that has no such form."""
    image, text = clip.image, clip.text
    if (reason := describe_unknown_tower(image)) is not None:
        raise ValueError(reason)
    if not isinstance(image, ViT) or not isinstance(text, TransformerTextTower):
        raise ValueError("its text tower is no transformer with known blocks")
    _require_plain_texts(text)
    config = {"model_cfg": _describe_model(clip, image, text), "preprocess_cfg": _describe_preprocessing(image)}
    state = _read_image_tower(image) | _read_text_tower(text)
    state["logit_scale"] = torch.tensor(math.log(clip.scale))
    if clip.bias:
        state["logit_bias"] = torch.tensor(clip.bias)
    return OpenClipFiles(config, state)


def write_open_clip(files: OpenClipFiles, folder: Path) -> None:
    """Write a configuration and weights that `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads."""
    from safetensors.torch import save

    config, state = files
    tensors = {name: tensor.float().cpu().contiguous().clone() for name, tensor in state.items()}
    (folder / WEIGHTS_FILE).write_bytes(save(tensors, {"format": "pt"}))
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", "utf-8")


def read_open_clip(folder: Path, device: torch.device) -> OpenClipModel:
    """Load a folder by plain open_clip."""
    import open_clip

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        created: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}", device=str(device))
        tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
    finally:
        root.setLevel(level)
    model, _, preprocess = created
    model.eval()

    def encode_pictures(pictures: Sequence[Image.Image]) -> Tensor:
        with torch.no_grad():
            return model.encode_image(torch.stack([preprocess(picture) for picture in pictures]).to(device))

    def encode_texts(texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return model.encode_text(tokenizer(list(texts)).to(device))

    return OpenClipModel(encode_pictures, encode_texts, float(model.logit_scale.exp()))


def _require_plain_texts(text: TransformerTextTower) -> None:
    tokenizer, last_id = text.tokenizer, len(text.token_embeddings) - 1
    if not text.is_causal or text.pooling != "end" or text.class_token is not None:
        raise ValueError("its text tower is not causal, or pools another token than the end of a text")
    plain = BytePairTokenizer(text.context_length)
    is_plain = tokenizer.begin_ids == (last_id - 1,) and tokenizer.end_ids == (last_id,)
    if not is_plain or tokenizer.encode(SAMPLE_TEXT) != plain.encode(SAMPLE_TEXT):  # what pads a causal text is unseen
        raise ValueError("its tokenizer is not the byte-pair tokenizer of CLIP")


def _describe_model(clip: Clip, image: ViT, text: TransformerTextTower) -> dict[str, Any]:
    vision, words = read_block_settings(image.blocks), read_block_settings(text.blocks)
    if vision.activation != words.activation:
        raise ValueError("its towers have different activations")
    vision_config = {
        "image_size": list(image.preprocessing.size),
        "patch_size": image.patch_size,
        "width": image.dim,
        "layers": image.depth,
        "head_width": image.head_dim,
        "no_ln_pre": image.pre_norm is identity or isinstance(image.pre_norm, nn.Identity),
        "pool_type": "avg" if image.n_pooled_tokens is None else "tok",
        "final_ln_after_pool": image.is_norm_after_pool,
        **_describe_blocks(vision),
    }
    text_config = {
        "context_length": text.context_length,
        "vocab_size": len(text.token_embeddings),
        "width": text.dim,
        "heads": text.n_heads,
        "layers": text.depth,
        **_describe_blocks(words),
    }
    config = {"embed_dim": clip.feature_dim, "quick_gelu": vision.activation == "quick_gelu"}
    if clip.bias:
        config["init_logit_bias"] = clip.bias
    return config | {"vision_cfg": vision_config, "text_cfg": text_config}


def _describe_blocks(settings: BlockSettings) -> dict[str, Any]:
    config: dict[str, Any] = {"mlp_ratio": settings.mlp_ratio}
    if settings.has_layer_scale:
        config["ls_init_value"] = 1.0
    if settings.eps != DEFAULT_EPS:
        config["norm_kwargs"] = {"eps": settings.eps}
    return config


def _describe_preprocessing(image: ViT) -> dict[str, Any]:
    preprocessing = image.preprocessing
    if preprocessing.crop != 1.0 or not preprocessing.antialias:
        raise ValueError("its preprocessing crops a part of the resized side, or does not smooth, as open_clip does")
    return {
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "resize_mode": preprocessing.resize,
    }


def _name_parameters(prefix: str) -> dict[str, str]:
    """Return open_clip's names of the parameters of blocks, by ours."""
    names = {}
    for name in [*(f"{m}.{p}" for m in BLOCK_MAPS for p in ("weight", "bias")), "scale1", "scale2"]:
        map_name, _, parameter = name.partition(".")
        ours = OPEN_CLIP_MAPS.get(name) or f"{OPEN_CLIP_MAPS[map_name]}.{parameter}"
        names[name] = f"{prefix}.resblocks.{{i}}.{ours}"
    return names


def _read_image_tower(tower: ViT) -> dict[str, Tensor]:
    patches, bias, positions = read_patch_weights(tower)
    if bias is not None:  # open_clip's convolution has none
        positions = torch.cat([positions[:1], positions[1:] + bias])
    state = {"conv1.weight": patches, "class_embedding": tower.special_tokens[0].detach()}
    state |= {"positional_embedding": positions, **read_map(tower.norm, "ln_post")}
    if isinstance(tower.pre_norm, nn.LayerNorm):
        _require_default_eps(tower.pre_norm, tower.blocks[0].norm1)
        state |= read_map(tower.pre_norm, "ln_pre")
    _require_default_eps(tower.norm, tower.blocks[0].norm1)
    projection = read_projection(tower.project, tower.dim)
    if projection is None:
        raise ValueError("its image tower has no projection into the joint space")
    state["proj"] = projection.T
    state = {f"visual.{name}": tensor for name, tensor in state.items()}
    return state | read_blocks(tower.blocks, _name_parameters("visual.transformer"))


def _require_default_eps(norm: Any, block_norm: Any) -> None:
    if read_eps(norm) != read_eps(block_norm):
        raise ValueError("its norms have several eps")


def _read_text_tower(tower: TransformerTextTower) -> dict[str, Tensor]:
    projection = read_projection(tower.project, tower.dim)
    if projection is None:
        raise ValueError("its text tower has no projection into the joint space")
    _require_default_eps(tower.norm, tower.blocks[0].norm1)
    state = {"token_embedding.weight": tower.token_embeddings, "positional_embedding": tower.positions}
    state |= {"text_projection": projection.T, **read_map(tower.norm, "ln_final")}
    return state | read_blocks(tower.blocks, _name_parameters("transformer"))
