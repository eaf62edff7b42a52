"""The handwritten digits of scikit-learn: 1797 images of 8x8 pixels (Alpaydin and Kaynak, UCI, 1998)."""

import random
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

DIGITS_TABLE = "datasets/data/digits.csv.gz"  # read without importing scikit-learn, which takes seconds


@cache
def load_digit_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Return grey levels uint8 (1797, 8, 8), white on black, and labels (1797,)."""
    spec = find_spec("sklearn")
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders or not (path := Path(folders[0]) / DIGITS_TABLE).is_file():
        raise OSError(f"scikit-learn: expected {DIGITS_TABLE} in its folder, got none. Reinstall scikit-learn.")
    rows = np.loadtxt(path, delimiter=",")
    return (rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8), rows[:, -1].astype(int)


def open_digit(index: int) -> Image.Image:
    return Image.fromarray(load_digit_arrays()[0][index]).convert("RGB")


def split_indices() -> dict[str, list[int]]:
    """Return the indices of train and val (the development half, 4 to 1) and test (the other half), class by class."""
    splits: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    labels = load_digit_arrays()[1]
    for label in range(10):
        indices = np.flatnonzero(labels == label).tolist()
        random.Random(label).shuffle(indices)
        half = (len(indices) + 1) // 2
        n_train = round(0.8 * half)
        splits["train"] += indices[:n_train]
        splits["val"] += indices[n_train:half]
        splits["test"] += indices[half:]
    return splits
