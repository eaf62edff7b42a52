"""The embedded CLIP, and a tiny random one of the same kind for tests."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from vlprompt.backbones.open_clip.towers import wrap, wrap_image
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.towers import Clip

TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 3},
}


def build(path: Path) -> Any:
    """The open_clip CLIP in a file that tools/pretrain_glyph.py wrote.

    Words it never met get rows drawn with a fixed seed.
    """
    from open_clip.model import CLIP
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(str(path), "pt") as file:
        made = json.loads(file.metadata()["glyph"])
    config = made["config"]
    state = {k: v if k == "token_embedding.ids" else v.float() for k, v in load_file(str(path)).items()}
    rows, places = state.pop("token_embedding.rows"), state.pop("token_embedding.ids").long()
    shape = config["text_cfg"]["vocab_size"], rows.shape[1]
    table = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    table[places] = rows
    model = CLIP(**config)
    model.load_state_dict(state | {"token_embedding.weight": table}, strict=True)
    visual: Any = model.visual
    visual.preprocess_cfg = {"size": visual.image_size, "mean": [made["mean"]] * 3, "std": [made["std"]] * 3}
    return model


def _tokenizer(model: Any) -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=model.context_length)


def embedded(device: str = "cpu") -> Clip:
    """The CLIP that ships with the package: 1.4 M parameters, trained on rendered glyphs.

    The model card beside it, glyph.md, says what it knows.
    """
    model = _embedded()
    return wrap(model, _tokenizer(model), "glyph", device)


def _embedded() -> Any:
    return build(Path(str(files("vlprompt.backbones") / "glyph.safetensors")))


def vit(device: str = "cpu", random: bool = False) -> ImageTower:
    """The image tower of the embedded CLIP, or of the random one, alone and without its projection: a small ViT."""
    model = _random(0) if random else _embedded()
    return wrap_image(model.visual, "glyph-vit/random" if random else "glyph-vit", device)


def twin(device: str = "cpu", seed: int = 0, **changes: Any) -> Clip:
    """A tiny CLIP with random weights, always the same; `changes` are merged into open_clip's configuration."""
    model = _random(seed, **changes)
    return wrap(model, _tokenizer(model), "glyph/random", device)


def _random(seed: int, **changes: Any) -> Any:
    from open_clip.model import CLIP

    config: dict[str, Any] = {
        k: {**v, **changes.get(k, {})} if isinstance(v, dict) else changes.get(k, v) for k, v in TINY.items()
    }
    config |= {k: v for k, v in changes.items() if k not in TINY}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIP(**config)
