"""Stanford Dogs: Images/n02085620-Chihuahua/*.jpg, train_list.mat and test_list.mat with such paths in file_list."""

from pathlib import Path
from typing import Any

import numpy as np

from vlprompt.data.dataset import Row
from vlprompt.data.layouts import Parts, arrays_of, folders_in, held
from vlprompt.data.splits.sampling import with_val


def classes(folder: Path, images: Path) -> dict[str, str]:
    """{folder: name} of the classes that are there."""
    return {key: key.split("-", 1)[-1].replace("_", " ") for key in folders_in(images)}


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    def rows(file: str) -> list[Row]:
        arrays: Any = arrays_of(folder / file)
        if "file_list" not in arrays:
            raise ValueError(f"{str(folder / file)!r} has no file_list; get it again")
        return [Row(str(path), str(path).split("/")[0]) for path in np.atleast_1d(arrays["file_list"]).tolist()]

    return with_val({"train": rows("train_list.mat"), "test": rows("test_list.mat")}, held(sizes))
