"""Dataset cards: what a dataset is and how its splits are made; a user's own files need none."""

from dataclasses import replace
from pathlib import Path

from vlprompt.core.class_names import PLAIN, Name, ids
from vlprompt.data.cards import HUBS, card_ids, is_card, read_card
from vlprompt.data.dataset import Data, joined, made
from vlprompt.data.images.decoding import AUGMENTS
from vlprompt.data.readers.user_path import find


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
    from vlprompt.data.text.card import texts_of

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
        from vlprompt.data.readers.hub import open_hub

        return open_hub(dataset, root, augment, template)
    found, where, hint = find(dataset)
    name = Path(dataset).expanduser().absolute().name
    data = made(name, found, template or PLAIN, augment or "crop-flip", where, hint, **how)
    return data if template is None else with_template(data, template)


def named(dataset: str | Data) -> str:
    """How a configuration calls a dataset: by what opens it again, or by name and hash where only Python can."""
    return f"{dataset.name}#{dataset.hash()}" if isinstance(dataset, Data) else dataset


def given(dataset: str | Data, augment: str | None, skip_broken: bool, texts: bool = False) -> Data:
    """A dataset by its name or file, or Data that was opened already, perhaps with other views.

    texts: whether it may be one of texts; ValueError where it may not.
    """
    from vlprompt.data.text.card import as_texts

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
    from vlprompt.data.readers.card import read_data

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
