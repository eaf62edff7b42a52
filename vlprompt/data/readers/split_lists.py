"""Split lists in JSON, a file for each part: {path: label}, as VPT's authors published them for FGVC."""

import json
from pathlib import Path
from typing import Any

from vlprompt.data.dataset import Row

PARTS = ("train", "val", "test")


def read_lists(folder: Path, files: list[str], ids: list[str]) -> dict[str, list[Row]]:
    """Rows of train, val and test; ids: of the card's classes in label order.

    Where paths begin with the folder of a class, that is the class, and each label must belong to one folder. Otherwise
    labels count as VPT counts them: their places among all labels, sorted; fewer labels than classes are places
    themselves. ValueError for what is no such list, for an image in two lists and for a label that fits no class;
    OSError for a list that is missing.
    """
    told = {part: _read(folder / file) for part, file in zip(PARTS, files, strict=True)}
    seen: dict[str, str] = {}
    for part, file in zip(PARTS, files, strict=True):
        for path in told[part]:
            if path in seen:
                raise ValueError(f"{folder}: the image {path!r} stands in {seen[path]} and in {file}; take them anew")
            seen[path] = file
    labels = {label for of_part in told.values() for label in of_part.values()}
    if any(path.split("/")[0] in ids for path in seen):
        return _by_folder(folder, told, ids)
    places = {label: place for place, label in enumerate(sorted(labels))}
    if len(labels) != len(ids):
        if max(labels) >= len(ids):
            raise ValueError(f"{folder}: {', '.join(files)} have {len(labels)} labels; the card has {len(ids)} classes")
        places = {label: label for label in labels}
    return {part: [Row(path, ids[places[label]]) for path, label in of_part.items()] for part, of_part in told.items()}


def _by_folder(folder: Path, told: dict[str, dict[str, int]], ids: list[str]) -> dict[str, list[Row]]:
    of_label: dict[int, str] = {}
    for of_part in told.values():
        for path, label in of_part.items():
            key = path.split("/")[0]
            if key not in ids:
                raise ValueError(f"{folder}: the lists name {path!r}, but there is no folder {key!r} of a class")
            if of_label.setdefault(label, key) != key:
                raise ValueError(
                    f"{folder}: the lists give {path!r} and images of {of_label[label]!r} the label {label}"
                )
    return {part: [Row(path, path.split("/")[0]) for path in of_part] for part, of_part in told.items()}


def _read(path: Path) -> dict[str, int]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {str(path.parent)!r}, but others of its lists; add it")
    try:
        told: Any = json.loads(path.read_text("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); get it again") from error
    if not isinstance(told, dict) or not told:
        raise ValueError(f"{path} must hold {{path: label}}; get it again")
    found = {}
    for image, label in told.items():
        if isinstance(label, bool) or not str(label).isdecimal():
            raise ValueError(f"{path}: {image!r} has the label {label!r}; labels are whole numbers from 0")
        if Path(image).is_absolute() or ".." in Path(image).parts:
            raise ValueError(f"{path}: {image!r} must be a path inside the folder of images")
        found[image] = int(label)
    return found
