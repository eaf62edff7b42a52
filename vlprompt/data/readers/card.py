"""What the data of a card hold: from its loader, its folder, a library or its members, and the stages of a stream."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vlprompt.core.class_names import Name, Names, ids
from vlprompt.core.images import Item
from vlprompt.data.builtin.image_loaders import LOADERS
from vlprompt.data.cards import card_classes, card_ids, is_card, read_card
from vlprompt.data.dataset import Found, Row, class_names, joined, told_alike
from vlprompt.data.locations import data_root
from vlprompt.data.readers.card_folder import read_place
from vlprompt.data.readers.hub import read_hub
from vlprompt.data.readers.user_path import find
from vlprompt.runtime.errors import nearest


def read_data(dataset: str, card: dict[str, Any], root: str | Path | None) -> Found:
    """What a card's data hold, read by its loader, in its folder, by a library or from its members."""
    if "members" in card:
        found = read_members(dataset, card, root)
    else:
        names = class_names(card_classes(card), f"the card {Path(dataset).stem}", card["template"])
        if "layout" in card:
            found = read_place(dataset, card, names, root)
        elif "hub" in card:
            from vlprompt.data.readers.hub import read_hub

            found = read_hub(card["hub"], root, names)
        else:
            found = LOADERS[card["loader"]](names)
    stages = stages_of(dataset, card, ids(found.names)) if "stages" in card else found.stages
    note = joined(card.get("note", ""), found.note)
    info = found.info | {key: card[key] for key in ("domain", "transductive", "pairs") if key in card}
    domains = tuple(card["domains"].values()) if "domains" in card else found.domains
    return replace(found, note=note, info=info, domains=domains, sparse=card.get("sparse", False), stages=stages)


def stages_of(dataset: str, card: dict[str, Any], known: Names) -> int | list[list[str]]:
    """The stages that a card cuts its classes into, as a number or by their ids; ValueError for what is none."""
    told, where = card["stages"], f"{Path(dataset).stem}: the card's stages"
    if isinstance(told, int) and not isinstance(told, bool):
        most = max(len(known), len(card_ids(card)))
        if not 1 <= told <= most:
            raise ValueError(f"{where} are {told}; from 1 stage up to one for each of its {most} classes can be made")
        return told
    if not isinstance(told, list) or not all(isinstance(stage, list) for stage in told) or not told:
        raise ValueError(f"{where} are {told!r}; they are a number, or a list with a list of class ids for each stage")
    stages, seen = [[str(key) for key in stage] for stage in told], dict[str, int]()
    for place, stage in enumerate(stages):
        if not stage:
            raise ValueError(f"{where}: number {place} has no classes; give it some or leave it out")
        for key in stage:
            if key not in known:
                raise ValueError(f"{where} name the class {key!r}; {nearest(key, known)}")
            if key in seen:
                raise ValueError(f"{where} have the class {key!r} in number {seen[key]} and {place}; it is met once")
            seen[key] = place
    return stages


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
