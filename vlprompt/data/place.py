"""Where datasets with a card lie on this machine, and how they are read there."""

import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from vlprompt.data.card import card_classes, class_names, is_card, read_card
from vlprompt.data.found import Found, joined, under
from vlprompt.data.lists import read_lists
from vlprompt.data.splitfile import OWN, read_split
from vlprompt.stage import Name, ids

ROOT = "VLPROMPT_DATA"


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds the folders of all datasets: what is given, else the environment's, else ./data."""
    return Path(root or os.environ.get(ROOT) or "data").expanduser()


def folder_of(card: dict[str, Any], root: str | Path | None = None) -> Path:
    return data_root(root) / card["folder"]


def is_here(card: dict[str, Any], root: str | Path | None = None) -> bool:
    """Whether its data lie on this machine; of a member that a library reads this is known when it is opened."""
    if "text" in card:
        from vlprompt.data.text_cards import texts_here

        return texts_here(card, root)
    if "members" in card:
        return all(_is_here(str(member), root) for member in card["members"].values())
    if "hub" in card:
        return folder_of(card, root).exists()
    return "loader" in card or (folder_of(card, root) / card["images"]).is_dir()


def _is_here(member: str, root: str | Path | None) -> bool:
    if is_card(member):
        return "members" not in (card := read_card(member)) and is_here(card, root)
    return member.startswith("torchvision:") or (data_root(root) / member).exists()


def source_of(card: dict[str, Any]) -> str:
    """Where the data come from, in a few words."""
    urls = [d["url"] for d in card.get("downloads", ()) if "url" in d]
    if isinstance(hub := card.get("hub", "its authors"), dict):  # of texts
        return " ".join(("huggingface:" + hub["path"], *([hub["name"]] if "name" in hub else [])))
    return urls[0] if urls else card.get("by_hand", hub)


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
