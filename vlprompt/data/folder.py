"""A folder of images as a dataset: one sub-folder per class, with or without train/, val/ and test/ above."""

import random
import unicodedata
from pathlib import Path

from vlprompt.data.card import class_names
from vlprompt.data.images import SUFFIXES, open_picture
from vlprompt.stage import Name

Rows = list[tuple[Path, int]]
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_folder(root: Path, skip_broken: bool = False) -> tuple[tuple[Name, ...], dict[str, Rows], str]:
    """Class names, the rows (file, class) of train, val and test, and a note on how the parts were made.

    With train/ and test/ above the classes these are taken as they are, and a fifth of train becomes val unless there
    is one. Otherwise each class is cut 50 : 20 : 30 (CoOp's rule for sets without a split), always the same way.
    ValueError for a folder without classes, an empty class, classes that differ between parts, or two folders of one
    id.
    """
    found = {PARTS[p.name.lower()]: p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in PARTS}
    if found and not {"train", "test"} <= set(found):
        raise ValueError(
            f"{str(root)!r} has {', '.join(sorted(found))}/ but not both train/ and test/: "
            "add the other, or put the class folders at the top"
        )
    parts = {part: _classes(path) for part, path in (found or {"all": root}).items()}
    keys = list(next(iter(parts.values())) if not found else parts["train"])
    for part, classes in parts.items():
        if strange := set(classes) ^ set(keys):
            one = min(strange)
            has, lacks = (part, "train") if one in classes else ("train", part)
            raise ValueError(
                f"the class {one!r} is in {has}/ but not in {lacks}/ of {str(root)!r}; every part needs every class"
            )
    broken: list[Path] = []
    rows = {
        part: [(f, i) for i, key in enumerate(keys) for f in _good(classes[key], skip_broken, broken)]
        for part, classes in parts.items()
    }
    made, note = (
        (rows, "train and test as the folder has them")
        if found
        else (_cut(rows["all"]), "each class cut 50:20:30 into train, val and test")
    )
    if found and "val" not in made:
        train = _cut(made["train"], (0.8, 0.2))
        made, note = {**made, "train": train["train"], "val": train["val"]}, note + "; a fifth of train is val"
    if broken:
        some = ", ".join(p.name for p in broken[:5]) + " ..." * (len(broken) > 5)
        note += f"; {len(broken)} broken files left out ({some})"
    names = class_names({key: key for key in keys}, f"the folder {str(root)!r}")
    for part, of_part in made.items():
        empty = set(range(len(keys))) - {label for _, label in of_part}
        if empty and part != "val":
            raise ValueError(
                f"the class {keys[min(empty)]!r} of {str(root)!r} has too few images for {part}; "
                "it needs at least 3, 10 or more are better"
            )
    return names, made, note


def _classes(path: Path) -> dict[str, list[Path]]:
    """{id: files} of the sub-folders, in the order of their names."""
    classes: dict[str, list[Path]] = {}
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        key = unicodedata.normalize("NFC", folder.name).strip()
        if key in classes:
            raise ValueError(
                f"two folders of {str(path)!r} are the class {key!r} "
                "once spaces around the name are left out; rename one"
            )
        files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        if not files:
            raise ValueError(
                f"the class folder {str(folder)!r} has no images ({', '.join(SUFFIXES[:4])} ...); add some or remove it"
            )
        classes[key] = files
    if not classes:
        raise ValueError(f"{str(path)!r} has no sub-folders; a dataset folder has one sub-folder of images per class")
    if len(classes) < 2:
        raise ValueError(f"{str(path)!r} has only the class {next(iter(classes))!r}; two classes are the least")
    return classes


def _good(files: list[Path], skip_broken: bool, broken: list[Path]) -> list[Path]:
    """The files that can be decoded.

    Without skip_broken nothing is opened here and a broken one stops the run when it is met.
    """
    if not skip_broken:
        return files
    good = []
    for file in files:
        try:
            open_picture(file)
            good.append(file)
        except ValueError:
            broken.append(file)
    return good


def _cut(rows: Rows, shares: tuple[float, ...] = (0.5, 0.2, 0.3)) -> dict[str, Rows]:
    """Each class cut by these shares into train, val (and test), after a shuffle that depends only on its size."""
    parts: dict[str, Rows] = {name: [] for name in ("train", "val", "test")[: len(shares)]}
    for label in sorted({label for _, label in rows}):
        of_class = [row for row in rows if row[1] == label]
        random.Random(len(of_class)).shuffle(of_class)
        first = max(1, round(shares[0] * len(of_class)))
        second = first + round(shares[1] * len(of_class)) if "test" in parts else len(of_class)
        second = min(second, len(of_class) - 1) if "test" in parts and len(of_class) > 1 else second
        parts["train"] += of_class[:first]
        parts["val"] += of_class[first:second]
        if "test" in parts:
            parts["test"] += of_class[second:]
    return parts
