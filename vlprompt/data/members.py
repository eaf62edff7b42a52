"""Datasets made of others: a card's `members: {name: a card, torchvision:NAME or a folder}`, each in its own reader."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vlprompt.data.card import find, is_card, read_card, told_alike
from vlprompt.data.found import Found, Row, joined
from vlprompt.data.hubs import read_hub
from vlprompt.data.place import data_root
from vlprompt.data.reading import read_data
from vlprompt.stage import Item, Name, ids


def read_members(dataset: str, card: dict[str, Any], root: str | Path | None) -> Found:
    """All their images; class ids and paths begin with the member's name, which is the domain of its images.

    The stages are the members in turn. Errors name the member.
    """
    where = Path(dataset).stem
    found = {str(name): _read(f"{where}, member {name}", one, root) for name, one in card["members"].items()}
    if strange := [name for name in found if "/" in name]:
        raise ValueError(
            f"{where}: a member is called {strange[0]!r}; a name has no /, which parts it from its classes"
        )
    names = tuple(
        Name(str(text), f"{member}/{key}", getattr(text, "hand", None) or card["template"])
        for member, one in found.items()
        for text, key in zip(one.names, ids(one.names), strict=True)
    )
    told_alike(names, where)
    if len(names) > card["classes"]:
        raise ValueError(f"{where}: the members have {len(names)} classes, but the card says {card['classes']}")
    parts: dict[str, list[Row]] = {}
    for member, one in found.items():
        for part, rows in one.parts.items():
            parts.setdefault(part, []).extend(Row(f"{member}/{r.path}", f"{member}/{r.id}", member) for r in rows)
    note = joined(*(f"{member}: {one.note}" for member, one in found.items() if one.note))
    stages = [[f"{member}/{key}" for key in ids(one.names)] for member, one in found.items()]
    item = partial(_item, {member: one.item for member, one in found.items()})
    return Found(names, parts, item, note, domains=tuple(found), stages=stages)


def _read(where: str, dataset: str, root: str | Path | None) -> Found:
    here, path = Path(str(dataset)).expanduser(), data_root(root) / str(dataset)
    try:
        if is_card(str(dataset)):
            card = read_card(dataset)
            if "members" in card:
                raise ValueError(f"the card {dataset!r} has members itself; name those")
            return read_data(dataset, card, root)
        if str(dataset).startswith("torchvision:"):
            return read_hub(dataset, root)
        if here.exists() or path.exists():
            return find(str(here if here.exists() else path))[0]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except OSError as error:
        raise FileNotFoundError(f"{where}: {error}") from error
    raise FileNotFoundError(
        f"{where}: {dataset!r} is no card and no torchvision:NAME, and neither here nor as {str(path)!r} is there "
        "such a folder (they may lie under --root, else VLPROMPT_DATA, else ./data)"
    )


def _item(items: dict[str, Callable[[str], Item]], path: str) -> Item:
    member, _, rest = path.partition("/")
    return replace(items[member](rest), name=path)
