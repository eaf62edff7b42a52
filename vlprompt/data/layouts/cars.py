"""Stanford Cars: devkit/cars_train_annos.mat, devkit/cars_meta.mat, cars_test_annos_withlabels.mat.

The year, which the authors put last in a class name, comes first, as the literature writes it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from vlprompt.data.dataset import Row
from vlprompt.data.layouts import Parts, arrays_of, at, held
from vlprompt.data.splits.sampling import with_val


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    meta: Any = arrays_of(folder / "devkit" / "cars_meta.mat")["class_names"]
    for number, name in enumerate(np.atleast_1d(meta).tolist(), 1):
        *words, year = str(name).split()
        if " ".join([year, *words]) != at(ids, number, folder):
            raise ValueError(f"cars_meta.mat calls the class {number} {name!r}, but the card {ids[number - 1]!r}")

    def rows(path: Path, inside: str) -> list[Row]:
        annotations: Any = arrays_of(path)["annotations"]
        annotations = np.atleast_1d(annotations)
        return [Row(f"{inside}/{one['fname']}", at(ids, one["class"], path)) for one in annotations]

    train = rows(folder / "devkit" / "cars_train_annos.mat", "cars_train")
    test = rows(folder / "cars_test_annos_withlabels.mat", "cars_test")
    return with_val({"train": train, "test": test}, held(sizes))
