"""Dataset cards: what a dataset is and how its splits are made; a folder of images needs none."""

import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlprompt.data.images import AUGMENTS, file_item, picture_item
from vlprompt.errors import nearest
from vlprompt.stage import Name, Split

KEYS = {"title", "source", "licence", "loader", "classes", "template", "augment", "note"}


@dataclass(frozen=True)
class Data:
    """A dataset that was opened: its splits (val may be missing), its template, and what a result must say of it."""

    name: str
    train: Split
    val: Split | None
    test: Split
    template: str
    note: str


def cards_folder() -> Path:
    """datasets/ of a checkout, or what the wheel carries of it."""
    inside = Path(__file__).parents[1] / "_cards"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "datasets"


def cards() -> list[str]:
    return sorted(path.stem for path in cards_folder().glob("*.yaml"))


def read_card(name: str) -> dict[str, Any]:
    """The card of a dataset; ValueError for a key it should not have or one that it lacks."""
    import yaml

    path = cards_folder() / f"{name}.yaml"
    card = yaml.safe_load(path.read_text("utf-8"))
    if unknown := set(card) - KEYS:
        raise ValueError(f"{path}: unknown key {min(unknown)!r}; a card has {', '.join(sorted(KEYS))}")
    if missing := {"title", "source", "licence", "loader", "classes", "template"} - set(card):
        raise ValueError(f"{path}: the key {min(missing)!r} is missing")
    return card


def open_data(dataset: str, augment: str | None = None, skip_broken: bool = False) -> Data:
    """A dataset by the name of its card, or a folder of images.

    The folder has a sub-folder per class, with or without train/ and test/ above. augment: "none", "crop" or
    "crop-flip" instead of what the card says. skip_broken: leave out files that can't be decoded. ValueError for a name
    that is neither a card nor a folder, and for folders that are empty or disagree on classes.
    """
    if augment is not None and augment not in AUGMENTS:
        raise ValueError(f"there is no augmentation {augment!r}; the choices are {', '.join(AUGMENTS)}")
    if dataset in cards():
        return _from_card(dataset, augment)
    path = Path(dataset).expanduser()
    if path.is_dir():
        from vlprompt.data.folder import read_folder

        names, parts, note = read_folder(path, skip_broken)
        kind = augment or "crop-flip"
        made = {k: Split(tuple(file_item(p) for p, _ in v), tuple(c for _, c in v), names, augment=kind)
                for k, v in parts.items()}  # fmt: skip
        return Data(path.name, made["train"], made.get("val"), made["test"], "a photo of a {name}.", note)
    if path.is_file():
        raise ValueError(
            f"{dataset!r} is a file; a dataset is a card or a folder with one sub-folder of images per class"
        )
    raise ValueError(
        f"there is no dataset {dataset!r}: neither a card ({nearest(dataset, cards())}) "
        "nor a folder with one sub-folder of images per class"
    )


def class_names(classes: dict[str, str], where: str, hand: str | None = None) -> tuple[Name, ...]:
    """Names from {id: name}; ValueError for an empty one, a warning for two alike."""
    names = []
    for key, name in classes.items():
        text = unicodedata.normalize("NFC", str(name)).strip()
        if not text.replace("_", " ").strip():
            raise ValueError(f"{where}: the class {key!r} has an empty name; give it a name that a caption can hold")
        names.append(Name(text, str(key), hand))
    if alike := sorted({str(n) for n in names if names.count(n) > 1}):
        warnings.warn(
            f"{where}: several classes are called {', '.join(map(repr, alike))}; their texts are the same", stacklevel=3
        )
    return tuple(names)


def _from_card(name: str, augment: str | None) -> Data:
    card = read_card(name)
    names = class_names(card["classes"], f"the card {name}", card["template"])
    parts = LOADERS[card["loader"]]()
    kind = augment or card.get("augment", "crop-flip")
    made = {
        k: Split(tuple(item for item, _ in v), tuple(label for _, label in v), names, augment=kind)
        for k, v in parts.items()
    }
    return Data(name, made["train"], made["val"], made["test"], card["template"], card.get("note", ""))


def _digits() -> dict[str, list[tuple[Any, int]]]:
    from vlprompt.data import digits

    labels = digits.arrays()[1]
    return {
        part: [(picture_item(f"digits/{i}", partial(digits.picture, i)), int(labels[i])) for i in places]
        for part, places in digits.halves().items()
    }


def _glyphs() -> dict[str, list[tuple[Any, int]]]:
    from vlprompt.data.glyphs.dataset import pictures

    return {
        part: [(picture_item(key, open_it), label) for key, open_it, label in rows] for part, rows in pictures().items()
    }


LOADERS: dict[str, Callable[[], dict[str, list[tuple[Any, int]]]]] = {"digits": _digits, "glyphs": _glyphs}
