"""Cards of text datasets: what they say, where their tables lie, and how they are read and fetched."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlprompt.core.class_names import Name, Names
from vlprompt.data.builtin.text_loaders import LOADERS
from vlprompt.data.cards import HUBS, card_ids, is_card, read_card
from vlprompt.data.dataset import Data, class_names
from vlprompt.data.locations import ROOT, folder_of, source_of
from vlprompt.data.table_rows import TABLES
from vlprompt.data.text.dataset import shown_by, text_data
from vlprompt.data.text.files import PARTS, is_texts, open_texts, rows_of, tables_in
from vlprompt.data.text_card_schema import _meaning
from vlprompt.data.text_schema import ANSWERS, Told


def text_names(card: Mapping[str, Any], where: str) -> Names:
    """The classes in label order, with the words that a language model says for them."""
    words = {str(key): [str(word) for word in some] for key, some in card.get("words", {}).items()}
    named = class_names(card_ids(dict(card)), where, card["template"])
    return tuple(Name(str(name), name.id, name.hand, words.get(name.id, ())) for name in named)


def tables_of(card: Mapping[str, Any], root: str | Path | None = None) -> dict[str, Path]:
    """{part: file} where the tables of a card lie, or should; without any file of a part it is the .jsonl."""
    if "file" in card:
        return {"all": Path(card["file"])}
    folder = folder_of(dict(card), root)
    if "hub" not in card:
        found = tables_in(folder) if folder.is_dir() else {}
        return found if {"train", "test"} <= set(found) else {part: folder / f"{part}.jsonl" for part in PARTS.values()
                                                              if part != "val"} | found  # fmt: skip
    tables = {}
    for part, theirs in card["hub"]["splits"].items():
        every = [folder / f"{theirs}{form}" for form in TABLES]
        tables[part] = next((path for path in every if path.is_file()), every[0])
    return tables


def texts_here(card: Mapping[str, Any], root: str | Path | None = None) -> bool:
    """Whether the tables of a card lie on this machine."""
    return "loader" in card or all(path.is_file() for path in tables_of(card, root).values())


def wanted_files(card: Mapping[str, Any], root: str | Path | None = None) -> str:
    """Which files a card wants and what must be in them."""
    files = ", ".join(map(str, tables_of(card, root).values()))
    text = card["text"]
    columns = [*text.get("fields", {}).values(), text[ANSWERS[text["answer"]]]]
    return f"{files} (or .csv, .tsv) with the columns {', '.join(columns)}"


def texts_of(dataset: str, augment: str | None, root: str | Path | None, template: str | None,
             how: dict[str, bool]) -> Data | None:  # fmt: skip
    """What `open_data` gives for a card or files of texts; None for what is no dataset of texts."""
    path = Path(dataset).expanduser()
    if is_card(dataset):
        card = read_card(dataset)
        data = _of_card(dataset, card, root, **how) if "text" in card else None
        data = data if data is None or template is None else shown_by(data, template)
    elif not dataset.startswith(HUBS) and path.exists() and is_texts(path):
        data = open_texts(dataset, template, **how)
    else:
        data = None
    return data if data is None else as_texts(data, augment)


def as_texts(data: Data, augment: str | None, wanted: bool = True) -> Data:
    """The texts as they are; ValueError where images are wanted, or texts should be augmented."""
    if not wanted:
        raise ValueError(f"{data.name!r} has texts, and this task is for images: take a language model by "
                         "--backbone hf:FOLDER (the task is then text), or a dataset of images")  # fmt: skip
    if augment not in (None, "none"):
        raise ValueError(f"{data.name!r} has texts, which have no views: leave the augmentation {augment!r} out")
    return data


def _of_card(dataset: str, card: Mapping[str, Any], root: str | Path | None, skip_broken: bool,
             only_there: bool) -> Data:  # fmt: skip
    """The texts of a card; OSError that says which files to put where, when they are not here."""
    name = Path(dataset).stem
    if "loader" in card:
        parts: Mapping[str, list[Told]] = LOADERS[card["loader"]]()
    elif not texts_here(card, root):
        get = f"; or get them by `vlprompt data prepare {dataset} --download`" if "hub" in card else ""
        place = f" (folders lie under --root, else {ROOT}, else ./data)" if "folder" in card else ""
        raise FileNotFoundError(f"{name} is not here: put {wanted_files(card, root)} there{place}{get}")
    else:
        parts = {part: rows_of(path) for part, path in tables_of(card, root).items()}
    info = {"metric": card["metric"]} if "metric" in card else {}
    return text_data(name, parts, _meaning(card, text_names(card, f"the card {name}")), name,
                     note=card.get("note", ""), info=info, skip_broken=skip_broken, only_there=only_there)  # fmt: skip


def prepared(card: Mapping[str, Any], dataset: str, download: bool, base: str | None) -> list[str]:
    """Fetches what is missing when it may; lines that say what is missing still, and how to come by it."""
    if base is not None:
        raise ValueError(f"{dataset} is taken from nowhere else; leave out --from, and put {wanted_files(card)} there")
    if download and "hub" in card:
        _get(card, dataset)
    if texts_here(card):
        return []
    get = f"Fetch with: vlprompt data prepare {dataset} --download"
    how = f"from {source_of(dict(card))}, licence: {card['licence']}. {get}"
    return [f"missing: {wanted_files(card)}", *([how] if "hub" in card else [])]


def _get(card: Mapping[str, Any], dataset: str) -> None:
    """Fetches what is missing with the package datasets and writes it as .jsonl files, whole or not at all.

    ValueError without the package, OSError for what can't be had, with the files that may be put there instead.
    """
    import importlib

    hub = card["hub"]
    try:
        load = importlib.import_module("datasets").load_dataset
    except (ImportError, AttributeError) as error:  # a folder of that name is no package
        raise ValueError(
            f"{dataset!r} needs the package datasets: pip install 'vlprompt[huggingface]'; or put "
            f"{wanted_files(card)} there"
        ) from error
    for part, path in tables_of(card).items():
        if path.is_file():
            continue
        how = {key: hub[key] for key in ("name", "revision") if key in hub}
        try:
            rows = load(hub["path"], split=hub["splits"][part], **how)
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(
                f"{dataset} could not be fetched: {' '.join(str(error).split())[:300]}; or put "
                f"{wanted_files(card)} there"
            ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.part")
        with beside.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows)
        os.replace(beside, path)
