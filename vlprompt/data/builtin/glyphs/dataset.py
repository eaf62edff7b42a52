"""The rendered glyphs as a dataset: 75 classes, 20 train, 5 val and 20 test images each.

They are drawn on the fly, always the same.
"""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
from PIL import Image
from torch import Tensor

from vlprompt.data.builtin.glyphs.render import Glyphs
from vlprompt.data.builtin.glyphs.words import NAMES

SIZES = {"train": 20, "val": 5, "test": 20}
SEEDS = {"train": 1_000_001, "val": 1_000_002, "test": 1_000_003}  # no pretraining run uses these


@cache
def _drawn(part: str) -> Tensor:
    """All images of a part, uint8 (classes * size, 32, 32, 3), class by class."""
    source = Glyphs(SEEDS[part])
    looks = [source.look(kind) for kind in range(len(NAMES)) for _ in range(SIZES[part])]
    return (source.draw(looks) * 255).round().byte().permute(0, 2, 3, 1)


def picture(part: str, index: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(_drawn(part)[index].numpy()))


def pictures() -> dict[str, list[tuple[str, Callable[[], Image.Image], int]]]:
    """For each part: (key, how to open it, class)."""
    return {
        part: [(f"glyphs/{part}/{i}", partial(picture, part, i), i // size) for i in range(size * len(NAMES))]
        for part, size in SIZES.items()
    }
