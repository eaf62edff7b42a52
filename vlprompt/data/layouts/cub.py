"""CUB-200-2011 and NABirds: images.txt ("1 001.Ani/a.jpg"), image_class_labels.txt ("1 1"), train_test_split.txt.

In the last, 1 is train and 0 is test. A class is a folder of images/ that begins with the class's number; its name
stands behind the dot, or in classes.txt ("817 Oak Titmouse").
"""

from pathlib import Path

from vlprompt.data.dataset import Row
from vlprompt.data.layouts import Parts, folders_in, held, lines_of
from vlprompt.data.splits.sampling import with_val


def classes(folder: Path, images: Path) -> dict[str, str]:
    """{folder: name} of the classes that are there."""
    keys = folders_in(images)
    if all("." in key for key in keys):
        return {key: key.split(".", 1)[1].replace("_", " ") for key in keys}
    called = _table(folder / "classes.txt")
    if strange := [key for key in keys if not key.isdecimal() or str(int(key)) not in called]:
        raise ValueError(
            f"{str(images / strange[0])!r} is no class of classes.txt; remove the folder, or get both again"
        )
    return {key: called[str(int(key))] for key in keys}


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    paths, labels, training = (
        _table(folder / f"{file}.txt") for file in ("images", "image_class_labels", "train_test_split")
    )
    rows: Parts = {"train": [], "test": []}
    for key, path in paths.items():
        if key not in labels or training.get(key) not in ("0", "1"):
            raise ValueError(
                f"{folder}: image_class_labels.txt or train_test_split.txt says nothing of the image {key}"
            )
        of_class = path.split("/")[0]
        if of_class.split(".")[0].lstrip("0") != labels[key].lstrip("0"):
            raise ValueError(f"{folder}: image_class_labels.txt has {path!r} in the class {labels[key]}; get it again")
        rows["train" if training[key] == "1" else "test"].append(Row(path, of_class))
    return with_val(rows, held(sizes))


def _table(path: Path) -> dict[str, str]:
    """{first word: the rest} of each line."""
    found = {}
    for line in lines_of(path):
        key, _, rest = line.partition(" ")
        if not rest.strip():
            raise ValueError(f"{path} has the line {line!r}; a line is a key and a value")
        found[key.lstrip("0") or "0"] = rest.strip()
    return found
