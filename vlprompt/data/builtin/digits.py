"""The handwritten digits that scikit-learn carries: 1797 images of 8x8 (Alpaydin and Kaynak, UCI, 1998)."""

import random
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

INSIDE = (
    "datasets/data/digits.csv.gz"  # of the package; importing it takes seconds, and its table is all that is wanted
)


@cache
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Grey levels uint8 (1797, 8, 8), ink white on black, and labels (1797,)."""
    spec = find_spec("sklearn")
    homes = spec.submodule_search_locations if spec is not None else None
    if not homes or not (path := Path(homes[0]) / INSIDE).is_file():
        raise OSError(f"the digits are a part of scikit-learn, and there is no {INSIDE} of it here: reinstall it")
    rows = np.loadtxt(path, delimiter=",")
    return (rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8), rows[:, -1].astype(int)


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
