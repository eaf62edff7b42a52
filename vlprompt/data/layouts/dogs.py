"""Stanford Dogs: Images/n02085620-Chihuahua/*.jpg, train_list.mat and test_list.mat with such paths in file_list."""

from pathlib import Path

import numpy as np

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.layouts import SplitRecords, list_folder_names, load_mat_file, validation_fraction
from vlprompt.data.splits.sampling import add_validation_split


def list_classes(folder: Path, images: Path) -> dict[str, str]:
    """Return {folder: name} of the classes that are there."""
    return {key: key.split("-", 1)[-1].replace("_", " ") for key in list_folder_names(images)}


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    def read_records(file: str) -> list[ImageRecord]:
        arrays = load_mat_file(folder / file)
        if "file_list" not in arrays:
            raise ValueError(f"{str(folder / file)!r}: expected a file_list, got none. Get it again.")
        return [ImageRecord(str(path), str(path).split("/")[0]) for path in np.atleast_1d(arrays["file_list"]).tolist()]

    return add_validation_split(
        {"train": read_records("train_list.mat"), "test": read_records("test_list.mat")}, validation_fraction(sizes)
    )
