"""Dataset cards: what a dataset is and how its splits are made; a user's own files need none."""

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlprompt.data.domains import told_right
from vlprompt.data.found import Data as Data
from vlprompt.data.found import Found, joined, made
from vlprompt.data.images import AUGMENTS
from vlprompt.data.loaders import LOADERS
from vlprompt.errors import nearest
from vlprompt.stage import Name, ids
from vlprompt.templates import PLAIN

NEEDED = {"title", "source", "licence", "classes", "template"}
KINDS = {"loader": set(), "hub": {"folder"}, "members": set(), "layout": {"folder", "images"}}  # and what else it needs
KEYS = NEEDED | {*KINDS, "folder", "images", "split", "sizes", "downloads", "by_hand", "names", "augment", "note",
                 "own_order", "lists", "sparse", "stages", "domains", "domain", "transductive", "pairs"}  # fmt: skip
FORMS = (".csv", ".tsv", ".jsonl", ".npz", ".json")  # files that are datasets
HUBS = ("torchvision:", "huggingface:")  # names that a library knows


def cards_folder() -> Path:
    """datasets/ of a checkout, or what the wheel carries of it."""
    inside = Path(__file__).parents[1] / "_cards"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "datasets"


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
        from vlprompt.data.text_cards import completed

        return completed(card, path)
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


def class_names(classes: dict[str, str], where: str, hand: str | None = None) -> tuple[Name, ...]:
    """Names from {id: name}; ValueError for an empty one, a warning for two alike."""
    names = []
    for key, name in classes.items():
        text = unicodedata.normalize("NFC", str(name)).strip()
        if not text.replace("_", " ").strip():
            raise ValueError(f"{where}: the class {key!r} has an empty name; give it a name that a caption can hold")
        names.append(Name(text, str(key), hand))
    told_alike(names, where)
    return tuple(names)


def told_alike(names: Sequence[str], where: str) -> None:
    """A warning for names that are alike."""
    if alike := sorted({str(n) for n in names if names.count(n) > 1}):
        warnings.warn(
            f"{where}: several classes are called {', '.join(map(repr, alike))}; their texts are the same", stacklevel=4
        )


def open_data(
    dataset: str,
    augment: str | None = None,
    skip_broken: bool = False,
    root: str | Path | None = None,
    only_there: bool = False,
    template: str | None = None,
) -> Data:
    """A dataset by the name of its card, or files: a folder of images, .csv, .jsonl, .npz, a split .json, a card .yaml.

    Or a name that a library knows: torchvision:CIFAR10, huggingface:OWNER/NAME (hubs.py); or texts (text_cards.py),
    whose splits hold passages, whose template has {mask} instead of {name} and which have no augmentation.

    The folder has a sub-folder per class, with or without train/ and test/ above, or a sub-folder per domain with the
    classes in it. augment: one of images.AUGMENTS instead of what the card says. skip_broken: leave out files that
    can't be decoded. root: where datasets with a card lie (default: the environment's VLPROMPT_DATA, else ./data).
    only_there: take the classes that have images instead of a ValueError for those that have none. template:
    hand-written text with {name} instead of the card's. ValueError for what is none of these and for what is wrong in
    it.
    """
    from vlprompt.data.text_cards import texts_of

    if augment not in (None, *AUGMENTS):
        raise ValueError(f"there is no augmentation {augment!r}; the choices are {', '.join(AUGMENTS)}")
    how = {"skip_broken": skip_broken, "only_there": only_there}
    if (texts := texts_of(dataset, augment, root, template, how)) is not None:
        return texts
    if template is not None and "{name}" not in template:
        raise ValueError(f"the template {template!r} has no {{name}} where the class stands")
    if is_card(dataset):
        data = _from_card(dataset, augment, root, how)
        return data if template is None else with_template(data, template)
    if dataset.startswith(HUBS):
        from vlprompt.data.hubs import open_hub

        return open_hub(dataset, root, augment, template)
    found, where, hint = find(dataset)
    name = Path(dataset).expanduser().absolute().name
    data = made(name, found, template or PLAIN, augment or "crop-flip", where, hint, **how)
    return data if template is None else with_template(data, template)


def find(dataset: str) -> tuple[Found, str, str]:
    """What lies in a user's folder or file, and how errors about it begin and end."""
    path = Path(dataset).expanduser()
    if path.is_dir():
        from vlprompt.data.folder import read_folder

        return read_folder(path), f"the folder {dataset!r}", "a class needs at least 3 images, 10 or more are better"
    if path.is_file() and path.suffix.lower() in FORMS:
        from vlprompt.data.files import read_file

        return read_file(path), f"the file {dataset!r}", "a class needs at least 3 images, 10 or more are better"
    if "#" in dataset:
        raise ValueError(f"{dataset!r} was given in Python as an object, by name and hash; open it there again")
    if path.is_file():
        raise ValueError(
            f"{dataset!r} is a file; a dataset is a card, a folder with one sub-folder of images per class, or a file "
            f"{', '.join(FORMS)}"
        )
    raise ValueError(
        f"there is no dataset {dataset!r}: neither a card ({nearest(dataset, cards())}) "
        "nor a folder with one sub-folder of images per class"
    )


def named(dataset: str | Data) -> str:
    """How a configuration calls a dataset: by what opens it again, or by name and hash where only Python can."""
    return f"{dataset.name}#{dataset.hash()}" if isinstance(dataset, Data) else dataset


def given(dataset: str | Data, augment: str | None, skip_broken: bool, texts: bool = False) -> Data:
    """A dataset by its name or file, or Data that was opened already, perhaps with other views.

    texts: whether it may be one of texts; ValueError where it may not.
    """
    from vlprompt.data.text_cards import as_texts

    data = dataset if isinstance(dataset, Data) else open_data(dataset, augment, skip_broken)
    if augment not in (None, *AUGMENTS):
        raise ValueError(f"there is no augmentation {augment!r}; the choices are {', '.join(AUGMENTS)}")
    if "answer" in data.test.info:
        return as_texts(data, augment, texts)
    if augment is None or data is not dataset:
        return data
    parts = {part: getattr(data, part) for part in ("train", "val", "test")}
    return replace(data, **{k: replace(split, augment=augment) for k, split in parts.items() if split is not None})


def with_template(data: Data, template: str) -> Data:
    """The same data with another hand-written text."""
    names = tuple(Name(str(n), key, template) for n, key in zip(data.test.names, ids(data.test.names), strict=True))
    parts = {part: getattr(data, part) for part in ("train", "val", "test")}
    splits = {part: replace(split, names=names) for part, split in parts.items() if split is not None}
    return replace(data, template=template, **splits)


def _from_card(dataset: str, augment: str | None, root: str | Path | None, how: dict[str, bool]) -> Data:
    from vlprompt.data.reading import read_data

    card, name = read_card(dataset), Path(dataset).stem
    get = f"prepare {dataset}`, by hand" if not {"downloads", "hub"} & set(card) else f"prepare {dataset} --download`"
    hint = (
        f"get the rest (`vlprompt data {get}), or take only the classes that are there: "
        "`vlprompt data check --only-there`, in Python open_data(..., only_there=True), which a task takes"
    )
    found = read_data(dataset, card, root)
    if len(found.names) < (many := len(card_ids(card))):
        here = f"only {len(found.names)} of {many} classes"
        if not how["only_there"]:
            raise ValueError(f"{name}: {here} are here; {hint}")
        found = replace(found, note=joined(found.note, f"{here} are there"))
    return made(name, found, card["template"], augment or card.get("augment", "crop-flip"), name, hint, **how)
