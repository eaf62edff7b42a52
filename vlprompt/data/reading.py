"""What the data of a card hold: from its loader, its folder, a library or its members, and the stages of a stream."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vlprompt.data.card import card_classes, card_ids, class_names
from vlprompt.data.found import Found, joined
from vlprompt.data.loaders import LOADERS
from vlprompt.data.place import read_place
from vlprompt.errors import nearest
from vlprompt.stage import Names, ids


def read_data(dataset: str, card: dict[str, Any], root: str | Path | None) -> Found:
    """What a card's data hold, read by its loader, in its folder, by a library or from its members."""
    if "members" in card:
        from vlprompt.data.members import read_members

        found = read_members(dataset, card, root)
    else:
        names = class_names(card_classes(card), f"the card {Path(dataset).stem}", card["template"])
        if "layout" in card:
            found = read_place(dataset, card, names, root)
        elif "hub" in card:
            from vlprompt.data.hubs import read_hub

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
