"""The modules of a CLIP of two plain transformers, as open_clip names and orders them, without importing open_clip.

They hold weights and settings for `towers` and compute nothing themselves; state dicts, identities and initial values
of the two libraries' models are the same.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PLAIN_SETTINGS = {
    "vision_cfg": {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}


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
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(math.prod(self.grid_size) + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = PlainTransformer(width, width // head_width, layers, **options)
        self.ln_post, self.proj = LayerNorm(width), nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))


class PlainClip(nn.Module):
    """A CLIP with a causal text tower that pools the end token, of open_clip's configuration.

    Args:
        embed_dim, vision_cfg, text_cfg: as open_clip has them.
        embed: builds the embeddings of the tokens from their number and width.
    """

    text_pool_type, text_eos_id, attn_mask = "argmax", 2, "causal"

    def __init__(
        self,
        embed_dim: int,
        vision_cfg: dict[str, Any],
        text_cfg: dict[str, Any],
        embed: Callable[[int, int], nn.Embedding] = nn.Embedding,
    ):
        super().__init__()
        text = dict(text_cfg)
        self.context_length, vocabulary = text.pop("context_length"), text.pop("vocab_size")
        width, n_heads = text["width"], text.pop("heads")
        self.visual = VisionTransformer(embed_dim, **vision_cfg)
        embedding = embed(vocabulary, width)  # drawn before the blocks, named after them
        self.transformer = PlainTransformer(n_heads=n_heads, **text)
        self.token_embedding = embedding
        self.positional_embedding = nn.Parameter(torch.empty(self.context_length, width))
        self.ln_final, self.text_projection = LayerNorm(width), nn.Parameter(torch.empty(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def is_plain(config: dict[str, Any]) -> bool:
    """Whether an open_clip configuration asks for nothing that a `PlainClip` lacks."""
    parts = {"embed_dim", *PLAIN_SETTINGS}
    are_known = all(config[part].keys() <= settings for part, settings in PLAIN_SETTINGS.items())
    return config.keys() == parts and are_known and isinstance(config["vision_cfg"]["layers"], int)


def draw_plain_clip(config: dict[str, Any]) -> PlainClip:
    """Build a CLIP with the initial values that open_clip draws, bit for bit, from torch's global generator."""
    model = PlainClip(**config)
    width, blocks = config["text_cfg"]["width"], model.transformer.resblocks
    stds = {"attn.in_proj_weight": width**-0.5, "attn.out_proj.weight": width**-0.5 * (2 * len(blocks)) ** -0.5}
    stds |= {"mlp.c_fc.weight": (2 * width) ** -0.5, "mlp.c_proj.weight": stds["attn.out_proj.weight"]}
    nn.init.normal_(model.token_embedding.weight, std=0.02)
    nn.init.normal_(model.positional_embedding, std=0.01)
    for block in blocks:
        for name, std in stds.items():
            nn.init.normal_(block.get_parameter(name), std=std)
    nn.init.normal_(model.text_projection, std=width**-0.5)
    return model


def build_plain_clip(config: dict[str, Any], state: dict[str, Tensor]) -> PlainClip:
    """Build a CLIP of an open_clip configuration with these weights.

    Raises:
        TypeError: for a configuration of more than two plain transformers.
        RuntimeError: if weights are missing, too many or of other shapes.
    """
    with torch.random.fork_rng(devices=[]):  # initial values, replaced at once; the meta device would be slow to import
        model = PlainClip(**config, embed=lambda n, width: nn.Embedding.from_pretrained(torch.empty(n, width)))
    model.load_state_dict(state)
    return model
