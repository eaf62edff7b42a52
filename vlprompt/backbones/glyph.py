"""The embedded CLIP, and a tiny random one for tests."""

import copy
import json
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from vlprompt.backbones.open_clip.byte_pairs import BytePairTokenizer
from vlprompt.backbones.open_clip.plain_clip import PlainClip, build_plain_clip, draw_plain_clip, is_plain
from vlprompt.backbones.open_clip.towers import wrap_clip, wrap_image_tower
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.towers import Clip

TINY_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 3},
}


def read_model(path: Path) -> PlainClip:
    """Read a CLIP from a file of tools/pretrain_glyph.py.

    The file has the embeddings of the tokens seen in training only; all others are drawn with a fixed seed.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(str(path), "pt") as file:
        metadata = json.loads(file.metadata()["glyph"])
    config = metadata["config"]
    state = {k: v if k == "token_embedding.ids" else v.float() for k, v in load_file(str(path)).items()}
    rows, ids = state.pop("token_embedding.rows"), state.pop("token_embedding.ids").long()
    shape = config["text_cfg"]["vocab_size"], rows.shape[1]
    embeddings = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    embeddings[ids] = rows
    model = build_plain_clip(config, state | {"token_embedding.weight": embeddings})
    visual: Any = model.visual
    mean, std = [metadata["mean"]] * 3, [metadata["std"]] * 3
    visual.preprocess_cfg = {"size": visual.image_size, "mean": mean, "std": std}
    return model


def load_glyph(device: str = "cpu") -> Clip:
    """Load the embedded CLIP: 1.4 M parameters, trained on rendered glyphs (model card: glyph.md)."""
    model = _read_embedded_model()
    return wrap_clip(model, BytePairTokenizer(model.context_length), "glyph", device)


def _read_embedded_model() -> PlainClip:
    return read_model(Path(str(files("vlprompt.backbones") / "glyph.safetensors")))


def load_glyph_vit(device: str = "cpu", random: bool = False) -> ImageTower:
    """Load the image tower of the embedded CLIP, or of the random one, without its projection: a small ViT."""
    model = _build_tiny_model(0) if random else _read_embedded_model()
    return wrap_image_tower(model.visual, "glyph-vit/random" if random else "glyph-vit", device)


def build_tiny_clip(device: str = "cpu", seed: int = 0, **changes: Any) -> Clip:
    """Build a tiny CLIP with random weights.

    Args:
        device: the device of its towers.
        seed: the same seed gives the same weights.
        changes: merged into open_clip's configuration.
    """
    model = _build_tiny_model(seed, **changes)
    return wrap_clip(model, BytePairTokenizer(model.context_length), "glyph/random", device)


def _build_tiny_model(seed: int, **changes: Any) -> Any:
    config: dict[str, Any] = {
        k: {**v, **changes.get(k, {})} if isinstance(v, dict) else changes.get(k, v) for k, v in TINY_CONFIG.items()
    }
    config |= {k: v for k, v in changes.items() if k not in TINY_CONFIG}
    return copy.deepcopy(_draw_model(seed, json.dumps(config)))


@lru_cache(maxsize=4)
def _draw_model(seed: int, config: str) -> Any:
    """Return a CLIP of an open_clip configuration as JSON, with open_clip's initial values; to be copied."""
    settings = json.loads(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_plain(settings):
            return draw_plain_clip(settings)
        from open_clip.model import CLIP

        return CLIP(**settings)
