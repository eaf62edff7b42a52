"""Rendered glyphs as a dataset: 75 classes with 20 train, 5 val and 20 test images each, rendered deterministically."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
from PIL import Image
from torch import Tensor

from vlprompt.data.builtin.glyphs.render import GlyphRenderer
from vlprompt.data.builtin.glyphs.words import NAMES

IMAGES_PER_CLASS = {"train": 20, "val": 5, "test": 20}
SEEDS = {"train": 1_000_001, "val": 1_000_002, "test": 1_000_003}  # no pretraining run uses these


@cache
def _render_split(split: str) -> Tensor:
    """Render the images of a split, uint8 (classes * size, 32, 32, 3), class by class."""
    renderer = GlyphRenderer(SEEDS[split])
    attributes = [
        renderer.sample_attributes(kind) for kind in range(len(NAMES)) for _ in range(IMAGES_PER_CLASS[split])
    ]
    return (renderer.render(attributes) * 255).round().byte().permute(0, 2, 3, 1)


def open_glyph(split: str, index: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(_render_split(split)[index].numpy()))


def list_glyphs() -> dict[str, list[tuple[str, Callable[[], Image.Image], int]]]:
    """Return the (key, opener, label) of each image, by split."""
    return {
        split: [(f"glyphs/{split}/{i}", partial(open_glyph, split, i), i // size) for i in range(size * len(NAMES))]
        for split, size in IMAGES_PER_CLASS.items()
    }
