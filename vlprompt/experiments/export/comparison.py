"""How exports are compared with the prompt: on which images, and how near."""

import numpy as np
from PIL import Image
from torch import Tensor

from vlprompt.core.images import Images, build_images
from vlprompt.data.images.decoding import build_memory_item

TOLERANCE = 1e-5  # of the largest value, at least of 1
N_IMAGES = 4


def make_test_pictures() -> list[Image.Image]:
    """Return smooth random pictures of several shapes, always the same ones."""
    draw, shapes = np.random.default_rng(0), ((90, 90), (120, 80), (70, 110), (64, 64))
    coarse = [Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)) for _ in range(N_IMAGES)]
    return [image.resize(shape, Image.Resampling.BICUBIC) for image, shape in zip(coarse, shapes, strict=True)]


def make_test_images() -> Images:
    """Return the pictures as a batch for methods."""
    items = [build_memory_item(picture) for picture in make_test_pictures()]
    return build_images(items, [None] * len(items))


def differ(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors differ by more than the tolerance, or either has values that are no numbers."""
    difference = (x.double() - y.double()).abs().max()
    return not bool(difference <= TOLERANCE * y.double().abs().max().clamp(min=1))


def require_equal(x: Tensor, y: Tensor, to: str, what: str) -> None:
    """Raise ValueError where what was exported gives other numbers than the prompt."""
    if differ(x, y):
        raise ValueError(
            f"--to {to}: expected {what} within {TOLERANCE:g} of the prompt's, got a difference of "
            f"{float((x - y).abs().max()):.2g}. Export it --to onnx or torch."
        )
