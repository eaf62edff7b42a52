"""Stanford Cars: devkit/cars_train_annos.mat, devkit/cars_meta.mat, cars_test_annos_withlabels.mat.

The year, which the authors put last in a class name, comes first, as the literature writes it.
"""

from pathlib import Path

import numpy as np

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.layouts import SplitRecords, class_id_at, load_mat_file, validation_fraction
from vlprompt.data.splits.sampling import add_validation_split


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    class_names = load_mat_file(folder / "devkit" / "cars_meta.mat")["class_names"]
    for number, name in enumerate(np.atleast_1d(class_names).tolist(), 1):
        *words, year = str(name).split()
        if " ".join([year, *words]) != class_id_at(ids, number, folder):
            raise ValueError(
                f"cars_meta.mat: expected class {number} to be {ids[number - 1]!r} as on the card, got {name!r}. Get "
                "it again, or correct the card."
            )

    def read_records(path: Path, subfolder: str) -> list[ImageRecord]:
        annotations = np.atleast_1d(load_mat_file(path)["annotations"])
        return [ImageRecord(f"{subfolder}/{one['fname']}", class_id_at(ids, one["class"], path)) for one in annotations]

    train = read_records(folder / "devkit" / "cars_train_annos.mat", "cars_train")
    test = read_records(folder / "cars_test_annos_withlabels.mat", "cars_test")
    return add_validation_split({"train": train, "test": test}, validation_fraction(sizes))
