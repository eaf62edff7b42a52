"""Read a folder of images: a sub-folder per class, or splits, domains or groups of classes above."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vlprompt.data.dataset import (
    ImageRecord,
    RawDataset,
    build_class_names,
    join_notes,
    make_item_builder,
    shorten_list,
)
from vlprompt.data.images.files import IMAGE_SUFFIXES, list_folders, list_image_files
from vlprompt.data.readers.domain_folders import collect_class_ids, list_domain_records, split_each_domain
from vlprompt.data.readers.folder_layout import FolderLayout, recognize_folder
from vlprompt.data.readers.split_file import SAVED_SPLIT_FILE, read_saved_split
from vlprompt.data.splits.sampling import add_validation_split, split_per_class

FilesByClass = dict[str, list[Path]]  # class id -> files


def read_image_folder(root: Path, layout: str | None = None) -> RawDataset:
    """Read classes and records of train, val and test, with a note on how the splits were made.

    A split that `vlprompt data split` saved in the folder is taken as it is. With train/ and test/ above the classes
    these are taken as they are, and a fifth of train becomes val unless there is one. Otherwise each class is cut
    50:20:30 (CoOp's rule for sets without a split), always the same way. Where the sub-folders are domains, each class
    of each domain is cut so.

    Args:
        root: the folder.
        layout: one of FOLDER_LAYOUTS instead of the one that is recognised.

    Raises:
        ValueError: for a folder that can be read in two ways, one without classes, an empty class, classes that differ
            between splits or domains, and two folders of one id.
    """
    if (root / SAVED_SPLIT_FILE).is_file():
        return _read_saved_split(root, layout)
    recognized = recognize_folder(root, layout)
    if recognized.name == "domains":
        raw = _read_domain_folders(root, recognized.folders)
    elif recognized.name == "splits":
        raw = _read_split_folders(root, recognized)
    else:
        files = _list_class_files(root, list(recognized.folders.values()))
        records = split_per_class(_make_records(root, files, list(files)))
        raw = _build_raw(root, list(files), records, "each class cut 50:20:30 into train, val and test")
    return replace(raw, layout=recognized.name, rule=recognized.rule)


def _read_saved_split(root: Path, layout: str | None) -> RawDataset:
    if layout is not None:
        raise ValueError(
            f"task.layout: expected none beside the saved split {str(root / SAVED_SPLIT_FILE)!r}, got {layout!r}. "
            "Leave it out, or remove that file."
        )
    return read_saved_split(root, root)


def _read_split_folders(root: Path, recognized: FolderLayout) -> RawDataset:
    places = {part: path.resolve() for part, path in recognized.folders.items()}
    if len(set(places.values())) < len(places):
        raise ValueError(
            f"{str(root)!r}: expected splits of different images, got {' and '.join(places)} in one folder by a link. "
            "Remove the link."
        )
    files = {part: _list_class_files(path, list_folders(path)) for part, path in recognized.folders.items()}
    keys = list(files["train"])
    _require_same_classes(files, keys, root)
    records, note = add_validation_split({part: _make_records(root, classes, keys) for part, classes in files.items()})
    raw = _build_raw(root, keys, records, note)
    if not recognized.ignored:
        return raw
    ignored = f"sub-folders that are no split are left out: {shorten_list(recognized.ignored, 4)}"
    return replace(raw, remarks=(ignored,))


def _make_records(root: Path, files: FilesByClass, keys: Sequence[str]) -> list[ImageRecord]:
    return [ImageRecord(file.relative_to(root).as_posix(), key) for key in keys for file in files[key]]


def _build_raw(root: Path, keys: Sequence[str], records: dict[str, list[ImageRecord]], note: str) -> RawDataset:
    names = build_class_names({key: key for key in keys}, f"the folder {str(root)!r}")
    return RawDataset(names, records, make_item_builder(root), note)


def _require_same_classes(files: Mapping[str, FilesByClass], keys: list[str], root: Path) -> None:
    """Raise ValueError for a class that is in one split and not in train, or the other way round."""
    for part, classes in files.items():
        if unmatched := set(classes) ^ set(keys):
            key = min(unmatched)
            has, lacks = (part, "train") if key in classes else ("train", part)
            raise ValueError(
                f"{str(root)!r}: expected the same classes in every split, got {key!r} in {has}/ but not in {lacks}/. "
                "Add its images there, or remove the class."
            )


def _read_domain_folders(root: Path, domain_folders: dict[str, Path]) -> RawDataset:
    where, keys = f"the folder {str(root)!r}", collect_class_ids(domain_folders)
    hint = " (its sub-folders share names, so they are taken for domains; images of a class lie straight in its folder)"
    records, note = split_each_domain(list_domain_records(root, domain_folders, keys, hint)[0])
    return RawDataset(
        build_class_names({key: key for key in keys}, where),
        records,
        make_item_builder(root),
        join_notes("its folders are domains", note),
        {"transductive": True},
        domains=tuple(domain_folders),
    )


def _list_class_files(path: Path, folders: Sequence[Path]) -> FilesByClass:
    """Return {id: files} of class folders in their order; `path` is where errors say that they are."""
    classes: FilesByClass = {}
    for folder in folders:
        key = unicodedata.normalize("NFC", folder.name).strip()
        if key in classes:
            raise ValueError(
                f"{str(path)!r}: expected folders of different names, got two of the class {key!r} (without spaces "
                "around the name). Rename one."
            )
        files = list_image_files(folder)
        if not files:
            raise ValueError(
                f"the class folder {str(folder)!r}: expected images ({', '.join(IMAGE_SUFFIXES[:4])} ...), got none. "
                "Add some or remove it."
            )
        classes[key] = files
    if not classes:
        raise ValueError(
            f"{str(path)!r}: expected one sub-folder of images per class, got no sub-folders. Put the images of each "
            "class into a folder."
        )
    if len(classes) < 2:
        raise ValueError(
            f"{str(path)!r}: expected at least 2 classes, got only the class {next(iter(classes))!r}. Add the folder "
            "of another class."
        )
    return classes
