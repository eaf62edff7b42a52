"""The modules of a CLIP of two plain transformers, as open_clip names and orders them, without importing open_clip.

They hold weights and settings for `towers` and compute nothing themselves; state dicts and identities of the two
libraries' models are the same.
"""

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """A norm whose result has the type of its input, under autocast too."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).to(input.dtype)


class PlainBlock(nn.Module):
    """A pre-norm block."""

    def __init__(self, width: int, n_heads: int, hidden: int):
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, n_heads)
        self.ls_1, self.ln_2 = nn.Identity(), LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, hidden), "gelu": nn.GELU(), "c_proj": nn.Linear(hidden, width)}
        self.mlp, self.ls_2 = nn.Sequential(OrderedDict(layers)), nn.Identity()


class PlainTransformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, n_heads: int, layers: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.resblocks = nn.ModuleList(PlainBlock(width, n_heads, int(width * mlp_ratio)) for _ in range(layers))


class VisionTransformer(nn.Module):
    """An image tower with a class token; the name is the one that `towers` looks for."""

    attn_pool, pool_type, final_ln_after_pool = None, "tok", False

    def __init__(
        self, embed_dim: int, image_size: int, patch_size: int, width: int, layers: int, head_width: int, **options: Any
    ):
        super().__init__()
        self.image_size, self.patch_size = (image_size, image_size), (patch_size, patch_size)
        self.grid_size, self.output_dim = (image_size // patch_size, image_size // patch_size), embed_dim
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(math.prod(self.grid_size) + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = PlainTransformer(width, width // head_width, layers, **options)
        self.ln_post, self.proj = LayerNorm(width), nn.Parameter(torch.empty(width, embed_dim))


class PlainClip(nn.Module):
    """A CLIP with a causal text tower that pools the end token, of open_clip's configuration."""

    text_pool_type, text_eos_id, attn_mask = "argmax", 2, "causal"

    def __init__(self, embed_dim: int, vision_cfg: dict[str, Any], text_cfg: dict[str, Any]):
        super().__init__()
        text = dict(text_cfg)
        self.context_length, vocabulary = text.pop("context_length"), text.pop("vocab_size")
        width, n_heads = text["width"], text.pop("heads")
        self.visual = VisionTransformer(embed_dim, **vision_cfg)
        self.transformer = PlainTransformer(n_heads=n_heads, **text)
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(vocabulary, width))  # without initial values
        self.positional_embedding = nn.Parameter(torch.empty(self.context_length, width))
        self.ln_final, self.text_projection = LayerNorm(width), nn.Parameter(torch.empty(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.empty(()))


def build_plain_clip(config: dict[str, Any], state: dict[str, Tensor]) -> PlainClip:
    """Build a CLIP of an open_clip configuration with these weights.

    Raises:
        TypeError: for a configuration of more than two plain transformers.
        RuntimeError: if weights are missing, too many or of other shapes.
    """
    with torch.random.fork_rng(devices=[]):  # initial values, replaced at once; the meta device would be slow to import
        model = PlainClip(**config)
    model.load_state_dict(state)
    return model
