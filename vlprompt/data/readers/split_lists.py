"""Read split lists in JSON, a file for each split: {path: label}, as VPT's authors published them for FGVC."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.splits.names import SPLIT_NAMES

LabelsBySplit = Mapping[str, Mapping[str, int]]  # split -> {path: label}


def read_split_lists(folder: Path, files: list[str], ids: list[str]) -> dict[str, list[ImageRecord]]:
    """Read the records of train, val and test.

    Where paths begin with the folder of a class, that is the class, and each label must belong to one folder. Otherwise
    labels count as VPT counts them: their places among all labels, sorted; fewer labels than classes are places
    themselves.

    Args:
        folder: where the lists lie.
        files: the lists of train, val and test.
        ids: the ids of the card's classes in label order.

    Raises:
        ValueError: for what is no such list, for an image in two lists and for a label that fits no class.
        OSError: for a list that is missing.
    """
    labels_by_split = {part: _load_label_json(folder / file) for part, file in zip(SPLIT_NAMES, files, strict=True)}
    file_of: dict[str, str] = {}
    for part, file in zip(SPLIT_NAMES, files, strict=True):
        for path in labels_by_split[part]:
            if path in file_of:
                raise ValueError(
                    f"{folder}: expected each image in one list, got {path!r} in {file_of[path]} and in {file}. Get "
                    "the lists again."
                )
            file_of[path] = file
    if any(path.split("/")[0] in ids for path in file_of):
        return _label_by_folder(folder, labels_by_split, ids)
    labels = {label for split_labels in labels_by_split.values() for label in split_labels.values()}
    index_of = {label: index for index, label in enumerate(sorted(labels))}
    if len(labels) != len(ids):
        if max(labels) >= len(ids):
            raise ValueError(
                f"{folder}: expected {len(ids)} labels as on the card, got {len(labels)} in {', '.join(files)}. Get "
                "the lists again, or correct the card."
            )
        index_of = {label: label for label in labels}
    return {
        part: [ImageRecord(path, ids[index_of[label]]) for path, label in split_labels.items()]
        for part, split_labels in labels_by_split.items()
    }


def _label_by_folder(folder: Path, labels_by_split: LabelsBySplit, ids: list[str]) -> dict[str, list[ImageRecord]]:
    """Return records whose class is the folder that their path begins with."""
    id_of: dict[int, str] = {}
    for split_labels in labels_by_split.values():
        for path, label in split_labels.items():
            key = path.split("/")[0]
            if key not in ids:
                raise ValueError(
                    f"{folder}: expected a folder {key!r} of a class, got none; the lists name {path!r}. Get images "
                    "and lists that belong together."
                )
            if id_of.setdefault(label, key) != key:
                raise ValueError(
                    f"{folder}: expected one class for the label {label}, got {path!r} and images of "
                    f"{id_of[label]!r}. Get the lists again."
                )
    return {
        part: [ImageRecord(path, path.split("/")[0]) for path in split_labels]
        for part, split_labels in labels_by_split.items()
    }


def _load_label_json(path: Path) -> dict[str, int]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path.parent)!r}: expected {path.name} next to others of its lists, got no such file. Add it."
        )
    try:
        content: Any = json.loads(path.read_text("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, got another format ({error}). Get it again.") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected {{path: label}}, got a {type(content).__name__}. Get it again.")
    labels = {}
    for image, label in content.items():
        if isinstance(label, bool) or not str(label).isdecimal():
            raise ValueError(
                f"{path}: expected labels that are whole numbers from 0, got {label!r} for {image!r}. Correct the "
                "label."
            )
        if Path(image).is_absolute() or ".." in Path(image).parts:
            raise ValueError(f"{path}: expected paths inside the folder of images, got {image!r}. Correct the path.")
        labels[image] = int(label)
    return labels
