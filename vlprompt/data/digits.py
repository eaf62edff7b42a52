"""The handwritten digits that scikit-learn carries: 1797 images of 8x8 (Alpaydin and Kaynak, UCI, 1998)."""

import random
from functools import cache
from typing import Any

import numpy as np
from PIL import Image


@cache
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Grey levels uint8 (1797, 8, 8), ink white on black, and labels (1797,)."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return (found.images * (255 / 16)).round().astype(np.uint8), found.target


def picture(index: int) -> Image.Image:
    return Image.fromarray(arrays()[0][index]).convert("RGB")


def halves() -> dict[str, list[int]]:
    """Indices of train and val (the development half, 4 to 1) and of test (the other half), class by class.

    Always the same.
    """
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    labels = arrays()[1]
    for label in range(10):
        places = np.flatnonzero(labels == label).tolist()
        random.Random(label).shuffle(places)
        half = (len(places) + 1) // 2
        train = round(0.8 * half)
        parts["train"] += places[:train]
        parts["val"] += places[train:half]
        parts["test"] += places[half:]
    return parts
