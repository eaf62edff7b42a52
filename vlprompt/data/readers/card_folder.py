"""Read a card's folder of images: the literature's split where it is, else a saved split or the data's own lists."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vlprompt.core.class_names import ClassName, class_ids
from vlprompt.data.cards import load_card_classes
from vlprompt.data.dataset import RawDataset, build_class_names, join_notes, make_item_builder
from vlprompt.data.layouts import ClassListingLayout, LabelSetLayout, Layout
from vlprompt.data.locations import ROOT_HELP, dataset_folder, describe_source
from vlprompt.data.readers.split_file import SAVED_SPLIT_FILE, read_saved_split, read_split_file
from vlprompt.data.readers.split_lists import read_split_lists

if TYPE_CHECKING:
    from vlprompt.data.card_schema import LayoutCard


def find_classes(card: "LayoutCard", root: str | Path | None = None) -> dict[str, str]:
    """Return {class id: name} in label order: the card's, or the data's where the card only counts them.

    Raises:
        ValueError: where the data have more classes than the card counts.
    """
    folder = dataset_folder(card.folder, root)
    if not isinstance(card.classes, int) or not (folder / card.images).is_dir():
        return load_card_classes(card)
    layout = cast(ClassListingLayout, import_module(f"vlprompt.data.layouts.{card.layout}"))
    classes = layout.list_classes(folder, folder / card.images)
    if len(classes) > card.classes:
        raise ValueError(
            f"{str(folder / card.images)!r}: expected {card.classes} class folders as on the card, got "
            f"{len(classes)}. Remove the folders that are no class."
        )
    return classes


def read_card_folder(card: "LayoutCard", names: tuple[ClassName, ...], root: str | Path | None = None) -> RawDataset:
    """Read the images of a card in its folder.

    The literature's split file, or its lists, are taken as they are where they lie in the folder; next comes a split
    that `vlprompt data split` saved there, then what the data's own lists say.

    Raises:
        OSError: for a folder that is not there.
    """
    folder = dataset_folder(card.folder, root)
    images = folder / card.images
    _require_images(card, folder, images)
    if card.is_counted:
        names = build_class_names(find_classes(card, root), card.name, card.template)
    if any((folder / file).is_file() for file in card.lists):
        records = read_split_lists(folder, card.lists, list(class_ids(names)))
        note = f"the lists {', '.join(card.lists)}"
        raw = RawDataset(names, records, make_item_builder(images), note, layout=card.layout, rule=note)
        return _mark_literature_split(raw, card)
    if card.split is not None and (folder / card.split).is_file():
        return _mark_literature_split(read_split_file(folder / card.split, images, names), card)
    layout = cast(Layout, import_module(f"vlprompt.data.layouts.{card.layout}"))
    has_label_sets = hasattr(layout, "read_label_sets")
    if (folder / SAVED_SPLIT_FILE).is_file():
        _require_one_label(has_label_sets, folder)
        return read_saved_split(folder, images, names)
    if has_label_sets:
        records, label_sets, note = cast(LabelSetLayout, layout).read_label_sets(folder, images, list(class_ids(names)))
        raw = RawDataset(names, records, make_item_builder(images), note, layout=card.layout, rule="as the card says")
        return _mark_literature_split(replace(raw, label_sets=label_sets), card)
    domains = {} if card.domains is None else {"domains": card.domains}
    records, note = layout.read(folder, images, list(class_ids(names)), card.sizes, **domains)
    raw = RawDataset(names, records, make_item_builder(images), note, layout=card.layout, rule="as the card says")
    if published := card.split or ", ".join(card.lists):
        return replace(raw, note=join_notes(note, f"not the literature's split, which is {published}"))
    return _mark_literature_split(raw, card)


def _require_one_label(has_label_sets: bool, folder: Path) -> None:
    """Raise ValueError where images may have several labels, which no saved split holds."""
    if has_label_sets:
        raise ValueError(
            f"{folder / SAVED_SPLIT_FILE}: expected no saved split where images may have several labels, got one. "
            "Remove the file: the dataset has lists of its own."
        )


def _require_images(card: "LayoutCard", folder: Path, images: Path) -> None:
    """Raise FileNotFoundError, with the way to the data, where they are not on this machine."""
    if images.is_dir():
        return
    lacking = f"{str(folder)!r} has no {card.images}/" if folder.is_dir() else f"there is no folder {str(folder)!r}"
    source = describe_source(card)
    command = f"by `vlprompt data prepare {card.dataset} --download`, from {source}"
    remedy = command if card.downloads else f"by hand: {source}"
    raise FileNotFoundError(f"{card.name}: expected its images, but {lacking}. {ROOT_HELP}. Get the data {remedy}.")


def _mark_literature_split(raw: RawDataset, card: "LayoutCard") -> RawDataset:
    """Mark the split as the literature's where it has its sizes, and its order so that the same shots are drawn."""
    counts = {part: len(records) for part, records in raw.records.items() if records}
    is_same = counts == card.sizes and not card.custom_order
    return replace(raw, info=raw.info | {"split": "literature"}) if is_same else raw
