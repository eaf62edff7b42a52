"""Dataset cards: what a dataset is and how its splits are made; a user's own files need none."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlprompt.data.builtin.image_loaders import LOADERS
from vlprompt.data.dataset import plain
from vlprompt.runtime.errors import nearest
from vlprompt.runtime.paths import cards_folder

NEEDED = {"title", "source", "licence", "classes", "template"}
KINDS = {"loader": set(), "hub": {"folder"}, "members": set(), "layout": {"folder", "images"}}  # and what else it needs
KEYS = NEEDED | {*KINDS, "folder", "images", "split", "sizes", "downloads", "by_hand", "names", "augment", "note",
                 "own_order", "lists", "sparse", "stages", "domains", "domain", "transductive", "pairs"}  # fmt: skip
HUBS = ("torchvision:", "huggingface:")  # names that a library knows


def cards() -> list[str]:
    return sorted(path.stem for path in cards_folder().glob("*.yaml"))


def layouts() -> list[str]:
    """The ways in which folders of datasets are read."""
    return sorted(path.stem for path in (Path(__file__).parent / "layouts").glob("[!_]*.py"))


def is_card(dataset: str) -> bool:
    """Whether it names a card of ours or a YAML file, which is a card of the user's."""
    return dataset in cards() or (Path(dataset).suffix in (".yaml", ".yml") and Path(dataset).expanduser().is_file())


def read_card(name: str) -> dict[str, Any]:
    """The card of a dataset by its name or its file; ValueError for a key it should not have or one that it lacks."""
    import yaml

    path = cards_folder() / f"{name}.yaml" if name in cards() else Path(name).expanduser()
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # many times as fast, where libyaml is
        card = yaml.load(path.read_text("utf-8"), Loader=loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(card, dict):
        raise ValueError(f"{path}: a card is a mapping of keys, not a {type(card).__name__}")
    if "text" in card:
        from vlprompt.data.text_card_schema import completed

        return completed(card, path, lambda: card_ids(card))
    if unknown := set(card) - KEYS:
        raise ValueError(f"{path}: unknown key {min(unknown)!r}; a card has {', '.join(sorted(KEYS))}")
    kinds = [kind for kind in KINDS if kind in card] or ["layout"]
    if len(kinds) > 1:
        raise ValueError(f"{path} has {' and '.join(kinds)}; a card has one of {', '.join(KINDS)}")
    [kind] = kinds
    if missing := (NEEDED | {kind} | KINDS[kind]) - set(card):
        raise ValueError(f"{path}: the key {min(missing)!r} is missing")
    known = {"loader": list(LOADERS), "layout": layouts()}.get(kind)
    if known is not None and card[kind] not in known:
        raise ValueError(f"{path}: there is no {kind} {card[kind]!r}; {nearest(str(card[kind]), known)}")
    if kind == "hub" and not str(card["hub"]).startswith("torchvision:"):
        raise ValueError(f"{path}: the hub is {card['hub']!r}; it is torchvision:NAME")
    if kind == "members" and not (isinstance(card[kind], dict) and isinstance(card["classes"], int)):
        raise ValueError(
            f"{path}: members are {{name: a card, torchvision:NAME or a folder}}, and classes is how many they have"
        )
    told_right(card, str(path))
    return card


def card_ids(card: dict[str, Any]) -> dict[str, str]:
    """{id: what the card itself says of it} in label order.

    A card gives a mapping, or a list of names that are their own ids and of {id: name}, or the name of the card whose
    classes they are. A card that only counts its classes, since the data name them, calls them by number.
    """
    given = card["classes"]
    if isinstance(given, int):
        return {str(i): f"class {i}" for i in range(given)}
    if isinstance(given, str):
        return card_ids(read_card(given))
    pairs: dict[Any, Any] = {}
    for one in [given] if isinstance(given, dict) else given:
        for key, name in (one if isinstance(one, dict) else {one: one}).items():
            if key in pairs:
                raise ValueError(f"the card has the class {key!r} twice; tell two of one name apart by {{id: name}}")
            pairs[key] = name
    return {str(key): str(name) for key, name in pairs.items()}


def card_classes(card: dict[str, Any]) -> dict[str, str]:
    """{id: name} in label order; with `names: imagenet` on the card, WordNet's ids with the names of CLIP's authors."""
    whose = read_card(card["classes"]) if isinstance(card["classes"], str) else card
    if whose.get("names") != "imagenet":
        return card_ids(whose)
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    every = dict(zip(read_card("imagenet")["classes"], IMAGENET_CLASSNAMES, strict=True))
    if strange := [key for key in card_ids(whose) if key not in every]:
        raise ValueError(f"the card has the class {strange[0]!r}, which is none of ImageNet's 1000 WordNet ids")
    return {key: every[key] for key in card_ids(whose)}


LAYOUT = "domains"  # the one that reads a card's domains


def told_right(card: Mapping[str, Any], where: str) -> None:
    """ValueError for a card whose keys domains, domain, transductive or pairs say what can't be."""
    if (card.get("layout") == LAYOUT) != ("domains" in card):
        raise ValueError(
            f"{where}: the layout {LAYOUT} needs the key domains, {{folder: word}}, and only it has that key"
        )
    if "domains" in card:
        told = card["domains"]
        right = isinstance(told, dict) and all(isinstance(t, str) and t.strip() for pair in told.items() for t in pair)
        if not right or len(told) < 2:
            raise ValueError(f"{where}: domains are {{folder: word}}, texts, two of them or more, not {told!r}")
        for what, texts in (("folder", told.keys()), ("word", told.values())):
            if twice := [text for text, n in Counter(map(plain, texts)).items() if n > 1]:
                raise ValueError(f"{where}: domains have the {what} {twice[0]!r} twice; tell them apart")
        if strange := [folder for folder in told if "/" in folder]:
            raise ValueError(
                f"{where}: the domain folder {strange[0]!r} is a path; give its name, and the rest in images"
            )
    if "domain" in card and (not isinstance(card["domain"], str) or not card["domain"].strip() or "domains" in card):
        raise ValueError(f"{where}: domain is the word for all images of a set without domains, not {card['domain']!r}")
    if not isinstance(card.get("transductive", False), bool):
        raise ValueError(f"{where}: transductive is true or false, not {card['transductive']!r}")
    known, pairs = list(card.get("domains", {}).values()), card.get("pairs", [])
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and set(pair) <= set(known) for pair in pairs
    ):
        raise ValueError(
            f"{where}: pairs are a list of [source, target], of the domains {', '.join(known)}; not {pairs!r}"
        )
