"""CUB-200-2011 and NABirds: images.txt ("1 001.Ani/a.jpg"), image_class_labels.txt ("1 1"), train_test_split.txt.

In the last, 1 is train and 0 is test. A class is a folder of images/ that begins with the class's number; its name
stands behind the dot, or in classes.txt ("817 Oak Titmouse").
"""

from pathlib import Path

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.layouts import SplitRecords, list_folder_names, read_lines, validation_fraction
from vlprompt.data.splits.sampling import add_validation_split


def list_classes(folder: Path, images: Path) -> dict[str, str]:
    """Return {folder: name} of the classes that are there."""
    keys = list_folder_names(images)
    if all("." in key for key in keys):
        return {key: key.split(".", 1)[1].replace("_", " ") for key in keys}
    names = _read_key_value_lines(folder / "classes.txt")
    if unknown := [key for key in keys if not key.isdecimal() or str(int(key)) not in names]:
        raise ValueError(
            f"{str(images / unknown[0])!r}: expected a class of classes.txt, got another folder. Remove the folder, "
            "or get both again."
        )
    return {key: names[str(int(key))] for key in keys}


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    paths, labels, training = (
        _read_key_value_lines(folder / f"{file}.txt") for file in ("images", "image_class_labels", "train_test_split")
    )
    records: SplitRecords = {"train": [], "test": []}
    for key, path in paths.items():
        if key not in labels or training.get(key) not in ("0", "1"):
            raise ValueError(
                f"{folder}: expected all images in image_class_labels.txt and train_test_split.txt, got none of the "
                f"image {key}. Get both again."
            )
        class_folder = path.split("/")[0]
        if class_folder.split(".")[0].lstrip("0") != labels[key].lstrip("0"):
            raise ValueError(
                f"{folder}: expected {path!r} in the class of its folder, got the class {labels[key]} in "
                "image_class_labels.txt. Get it again."
            )
        records["train" if training[key] == "1" else "test"].append(ImageRecord(path, class_folder))
    return add_validation_split(records, validation_fraction(sizes))


def _read_key_value_lines(path: Path) -> dict[str, str]:
    """Return {first word: the rest} of each line."""
    values = {}
    for line in read_lines(path):
        key, _, rest = line.partition(" ")
        if not rest.strip():
            raise ValueError(f"{path}: expected lines of a key and a value, got {line!r}. Get it again.")
        values[key.lstrip("0") or "0"] = rest.strip()
    return values
