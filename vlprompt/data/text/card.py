"""Locate, read and download the tables of text dataset cards."""

import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from vlprompt.core.class_names import ClassName, Names
from vlprompt.data.builtin.text_loaders import TEXT_LOADERS
from vlprompt.data.dataset import Data, build_class_names
from vlprompt.data.locations import ROOT_HELP, dataset_folder, describe_source
from vlprompt.data.sources import DatasetSource, UserPath
from vlprompt.data.table_rows import TABLE_SUFFIXES
from vlprompt.data.text.dataset import build_text_dataset, with_text_template
from vlprompt.data.text.files import find_split_tables, is_text_path, open_text_path, read_text_rows
from vlprompt.data.text_schema import TextRow

if TYPE_CHECKING:
    from vlprompt.data.text_card_schema import TextCard


def build_text_class_names(card: "TextCard", where: str) -> Names:
    """Return the class names in label order, with the verbalizer words of each."""
    words = card.class_words()
    names = build_class_names(card.listed_classes(), where, card.template)
    return tuple(ClassName(str(name), name.id, name.template, words.get(name.id, ())) for name in names)


def find_card_tables(card: "TextCard", root: str | Path | None = None) -> dict[str, Path]:
    """Return {split: file} of a card's tables, present or not; the path of a missing file ends in .jsonl."""
    if card.file_path is not None:
        return {"all": card.file_path}
    folder = dataset_folder(card.folder or ".", root)
    if card.hub is None:
        tables = find_split_tables(folder) if folder.is_dir() else {}
        if {"train", "test"} <= set(tables):
            return tables
        return {split_name: folder / f"{split_name}.jsonl" for split_name in ("train", "test")} | tables
    tables = {}
    for split_name, hub_split in card.hub.splits.items():
        candidates = [folder / f"{hub_split}{suffix}" for suffix in TABLE_SUFFIXES]
        tables[split_name] = next((path for path in candidates if path.is_file()), candidates[0])
    return tables


def is_text_card_available(card: "TextCard", root: str | Path | None = None) -> bool:
    """Whether all tables of a card are on this machine."""
    return card.loader is not None or all(path.is_file() for path in find_card_tables(card, root).values())


def describe_required_files(card: "TextCard", root: str | Path | None = None) -> str:
    """Describe the files that a card needs and their columns."""
    files = ", ".join(map(str, find_card_tables(card, root).values()))
    columns = [*card.text.fields.values(), card.text.column]
    return f"{files} (or .csv, .tsv) with the columns {', '.join(columns)}"


def is_text_source(source: DatasetSource) -> "TypeGuard[TextCard | UserPath]":
    """Whether a source is a text card or a path of text tables."""
    if isinstance(source, UserPath):
        return is_text_path(source.path)
    return getattr(source, "kind", None) == "text"


def open_text_source(
    source: "TextCard | UserPath",
    root: str | Path | None,
    template: str | None,
    skip_broken: bool,
    allow_missing_classes: bool,
) -> Data:
    """Open a text dataset.

    Args:
        source: a text card, or the path of a user's own tables.
        root: the folder of datasets; None for the default one.
        template: replaces the dataset's template.
        skip_broken: leave out rows that can't be read.
        allow_missing_classes: leave out classes without texts.

    Raises:
        FileNotFoundError: if tables of the card are missing.
        ValueError: for invalid rows, columns or templates.
    """
    if isinstance(source, UserPath):
        return open_text_path(source.dataset, template, skip_broken, allow_missing_classes)
    data = _open_text_card(source, root, skip_broken, allow_missing_classes)
    return data if template is None else with_text_template(data, template)


def check_text_use(data: Data, augment: str | None, allow_texts: bool = True) -> Data:
    """Return the texts unchanged.

    Raises:
        ValueError: if the caller needs images, or asks for an augmentation.
    """
    if not allow_texts:
        raise ValueError(
            f"task: expected a dataset of images, got {data.name!r} with texts. Use a language model by --backbone "
            "hf:FOLDER (the task is then text), or a dataset of images."
        )
    if augment not in (None, "none"):
        raise ValueError(
            f"augment: expected none for texts, got {augment!r} for {data.name!r}. Leave out the augmentation."
        )
    return data


def _open_text_card(card: "TextCard", root: str | Path | None, skip_broken: bool, allow_missing_classes: bool) -> Data:
    """Open the texts of a card; FileNotFoundError that names the files to add."""
    if card.loader is not None:
        rows: dict[str, list[TextRow]] = TEXT_LOADERS[card.loader]()
    elif not is_text_card_available(card, root):
        command = f", or get them by `vlprompt data prepare {card.dataset} --download`"
        download_hint = "" if card.hub is None else command
        root_hint = "" if card.folder is None else f" ({ROOT_HELP})"
        raise FileNotFoundError(
            f"{card.name}: expected its files, got none. Put {describe_required_files(card, root)} "
            f"there{root_hint}{download_hint}."
        )
    else:
        rows = {split_name: read_text_rows(path) for split_name, path in find_card_tables(card, root).items()}
    return build_text_dataset(
        card.name,
        rows,
        card.build_schema(build_text_class_names(card, f"the card {card.name}")),
        card.name,
        note=card.note,
        info={} if card.metric is None else {"metric": card.metric},
        skip_broken=skip_broken,
        allow_missing_classes=allow_missing_classes,
    )


def prepare_texts(card: "TextCard", download: bool, mirror: str | None) -> list[str]:
    """Download missing tables if allowed; return lines that describe what is still missing and how to get it.

    Args:
        card: the text card.
        download: whether to download.
        mirror: must be None; text datasets have no mirrors.

    Raises:
        ValueError: for a mirror, and if the package datasets is needed but not installed.
        OSError: if a download fails.
    """
    if mirror is not None:
        raise ValueError(
            f"--from: expected no mirror for {card.dataset}, got {mirror!r}. Leave out --from, and put "
            f"{describe_required_files(card)} there."
        )
    if download and card.hub is not None:
        _download_texts(card)
    if is_text_card_available(card):
        return []
    missing = f"missing: {describe_required_files(card)}"
    if card.hub is None:
        return [missing]
    fetch = f"Fetch with: vlprompt data prepare {card.dataset} --download"
    return [missing, f"from {describe_source(card)}, licence: {card.licence}. {fetch}"]


def _download_texts(card: "TextCard") -> None:
    """Download missing tables with the package datasets and write them atomically as .jsonl files."""
    hub = card.hub
    assert hub is not None
    try:
        load_dataset = importlib.import_module("datasets").load_dataset
    except (ImportError, AttributeError) as error:  # a folder of that name is no package
        raise ValueError(
            f"{card.dataset!r}: expected the package datasets, got none. Run pip install 'vlprompt[huggingface]', or "
            f"put {describe_required_files(card)} there."
        ) from error
    options = {key: value for key, value in (("name", hub.name), ("revision", hub.revision)) if value is not None}
    for split_name, path in find_card_tables(card).items():
        if path.is_file():
            continue
        try:
            rows = load_dataset(hub.path, split=hub.splits[split_name], **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(
                f"{card.dataset}: download failed: {' '.join(str(error).split())[:300]}. Try again, or put "
                f"{describe_required_files(card)} there."
            ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows)
        os.replace(temporary, path)
