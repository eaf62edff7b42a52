"""Where datasets with a card lie on this machine, and how they are read there."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from vlprompt.core.class_names import Name, ids
from vlprompt.data.cards import card_classes
from vlprompt.data.dataset import Found, class_names, joined, under
from vlprompt.data.locations import ROOT, folder_of, source_of
from vlprompt.data.readers.split_file import OWN, read_split
from vlprompt.data.readers.split_lists import read_lists


def classes_of(card: dict[str, Any], root: str | Path | None = None) -> dict[str, str]:
    """{id: name} in label order: the card's, or the data's where the card only counts them and the data are here.

    ValueError where the data have more.
    """
    folder = folder_of(card, root)
    if not isinstance(card["classes"], int) or not (folder / card["images"]).is_dir():
        return card_classes(card)
    found = import_module(f"vlprompt.data.layouts.{card['layout']}").classes(folder, folder / card["images"])
    if len(found) > card["classes"]:
        raise ValueError(
            f"{str(folder / card['images'])!r} has {len(found)} folders of classes, but the card {card['classes']}; "
            "remove those that are none"
        )
    return found


def read_place(dataset: str, card: dict[str, Any], names: tuple[Name, ...], root: str | Path | None = None) -> Found:
    """Classes and rows of a dataset in its folder.

    The literature's split file, or its lists, are taken as they are where they lie in the folder; next comes a split
    that we saved there, then what the data's own lists say. OSError for a folder that is not there.
    """
    folder = folder_of(card, root)
    images = folder / card["images"]
    if not images.is_dir():
        what = (
            f"there is no folder {str(folder)!r}"
            if not folder.is_dir()
            else f"{str(folder)!r} has no {card['images']}/"
        )
        raise FileNotFoundError(
            f"{Path(dataset).stem}: {what} (datasets lie under --root, else {ROOT}, else ./data); "
            + (
                f"get the data by `vlprompt data prepare {dataset} --download`, from {source_of(card)}"
                if "downloads" in card
                else f"get the data by hand: {source_of(card)}"
            )
        )
    if isinstance(card["classes"], int):
        names = class_names(classes_of(card, root), Path(dataset).stem, card["template"])
    theirs, lists = card.get("split"), card.get("lists", [])
    if any((folder / file).is_file() for file in lists):
        found = Found(
            names, read_lists(folder, lists, list(ids(names))), under(images), f"the lists {', '.join(lists)}"
        )
        return _marked(found, card)
    for file in filter(None, (theirs, OWN)):
        if (folder / file).is_file():
            found = read_split(folder / file, images, names)
            return _marked(found, card) if file == theirs else found
    layout = import_module(f"vlprompt.data.layouts.{card['layout']}")
    more = {"domains": card["domains"]} if "domains" in card else {}
    parts, note = layout.read(folder, images, list(ids(names)), card.get("sizes", {}), **more)
    if published := theirs or ", ".join(lists):
        return Found(names, parts, under(images), joined(note, f"not the literature's split, which is {published}"))
    return _marked(Found(names, parts, under(images), note), card)


def _marked(found: Found, card: dict[str, Any]) -> Found:
    """Told to be the literature's split where it has the literature's sizes, and shots can be drawn in its order."""
    counts = {part: len(rows) for part, rows in found.parts.items() if rows}
    same = counts == card.get("sizes") and not card.get("own_order", False)
    return replace(found, info=found.info | {"split": "literature"}) if same else found
