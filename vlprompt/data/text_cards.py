"""Cards of text datasets: what they say, where their tables lie, and how they are read and fetched."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlprompt.data.card import HUBS, card_ids, class_names, is_card, read_card
from vlprompt.data.found import Data
from vlprompt.data.place import ROOT, folder_of, source_of
from vlprompt.data.tables import TABLES
from vlprompt.data.text_files import PARTS, is_texts, open_texts, rows_of, tables_in
from vlprompt.data.text_loaders import LOADERS
from vlprompt.data.text_rows import ANSWERS, Meaning, Told
from vlprompt.data.texts import shown_by, text_data
from vlprompt.errors import nearest
from vlprompt.stage import Name, Names

NEEDED = {"title", "source", "licence", "text"}
HOMES = ("loader", "folder", "file")
KEYS = NEEDED | {*HOMES, "hub", "classes", "words", "template", "plain", "sizes", "note", "metric"}
PARTITIONS = ({"train", "test"}, {"train", "val", "test"}, {"all"})
HUB = {"path", "name", "revision", "splits"}


def completed(card: dict[str, Any], path: Path) -> dict[str, Any]:
    """A card of texts with what it leaves out; ValueError for a key too many, one that it lacks, or what can't be.

    text: {fields: {our name: column}, answer, and the answer's column by its key in ANSWERS}. Conversations and tags
    need no template; others have one, or a list of which a row takes the first whose fields it has. words: {class:
    what a language model says for it, the best first}. folder: under the root of all data; file: beside the card.
    """
    if unknown := set(card) - KEYS:
        raise ValueError(f"{path}: unknown key {min(unknown)!r}; a card of texts has {', '.join(sorted(KEYS))}")
    text, homes = card.get("text"), [home for home in HOMES if home in card]
    if missing := NEEDED - set(card):
        raise ValueError(f"{path}: the key {min(missing)!r} is missing")
    if len(homes) != 1:
        raise ValueError(f"{path} has {' and '.join(homes) or 'no place'}; a card of texts has one of "
                         f"{', '.join(HOMES)}")  # fmt: skip
    if "loader" in card and card["loader"] not in LOADERS:
        raise ValueError(f"{path}: there is no loader {card['loader']!r}; {nearest(str(card['loader']), LOADERS)}")
    if not isinstance(text, dict) or text.get("answer") not in ANSWERS:
        raise ValueError(f"{path}: text is {{fields: {{our name: column}}, answer: one of {', '.join(ANSWERS)}, and "
                         f"the answer's column}}, not {text!r}")  # fmt: skip
    answer = text["answer"]
    needed = {"answer", ANSWERS[answer]} | ({"fields"} if answer != "messages" else set())
    if set(text) != needed:
        raise ValueError(f"{path}: text has {', '.join(text)}; for the answer {answer} it has "
                         f"{', '.join(sorted(needed))}")  # fmt: skip
    fields = text.get("fields", {"messages": text.get("messages")})
    if not isinstance(fields, dict) or not fields or (answer == "tags" and set(fields) != {"words"}):
        wanted = "{words: column}" if answer == "tags" else "{our name: column}"
        raise ValueError(f"{path}: fields are {wanted}, not {fields!r}")
    if "hub" in card and not (
        isinstance(card["hub"], dict) and {"path", "splits"} <= set(card["hub"]) <= HUB and "folder" in card
    ):
        raise ValueError(f"{path}: a hub is {{path: OWNER/NAME, name: of a part, splits: {{train: theirs, test: "
                         f"theirs}}}} beside a folder, not {card['hub']!r}")  # fmt: skip
    if "hub" in card and set(card["hub"]["splits"]) not in PARTITIONS:
        raise ValueError(f"{path}: the hub's splits have {', '.join(card['hub']['splits'])}; ours are train, test and "
                         "perhaps val, or all, which is cut")  # fmt: skip
    if ("classes" in card) != (answer in ("class", "tags")):
        raise ValueError(f"{path}: classes are for the answers class and tags, and these need them")
    if answer in ("messages", "tags"):
        card.setdefault("template", "{messages}" if answer == "messages" else "{words}")
    if "template" not in card:
        raise ValueError(f"{path}: the key 'template' is missing")
    templates = card["template"] if isinstance(card["template"], list) else [card["template"]]
    card["templates"], card["template"] = tuple(map(str, templates)), str(templates[0])
    card.setdefault("classes", ["response"])
    words, keys = card.get("words", {}), card_ids(card)
    lists = list(words.values()) if isinstance(words, dict) else [words]
    if not all(isinstance(some, list) and some for some in lists):
        raise ValueError(f"{path}: words are {{class: a list of words}}, the best first, not {words!r}")
    if bad := [word for some in lists for word in some if not isinstance(word, str) or not word.strip()]:
        raise ValueError(f"{path}: {bad[0]!r} is no word; write words in quotes, for YAML takes yes and no for truth")
    if strange := [key for key in map(str, words) if key not in keys]:
        raise ValueError(f"{path}: words has the class {strange[0]!r}; {nearest(strange[0], keys)}")
    try:
        _meaning(card, ())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if "file" in card:
        card["file"] = str(path.parent / card["file"])
    return card


def _meaning(card: Mapping[str, Any], names: Names) -> Meaning:
    text = card["text"]
    column = text[ANSWERS[text["answer"]]]
    return Meaning(text["answer"], text.get("fields", {"messages": column}), column, card["templates"],
                   card.get("plain"), names)  # fmt: skip


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
