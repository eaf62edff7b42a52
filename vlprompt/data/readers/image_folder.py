"""Read a folder of images: a sub-folder per class, with or without train/, val/, test/ or domains above."""

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from vlprompt.data.dataset import ImageRecord, RawDataset, build_class_names, join_notes, make_item_builder
from vlprompt.data.images.decoding import IMAGE_SUFFIXES, list_image_files
from vlprompt.data.readers.domain_folders import (
    collect_class_ids,
    find_domain_folders,
    list_domain_records,
    split_each_domain,
)
from vlprompt.data.readers.split_file import SAVED_SPLIT_FILE, read_split_file
from vlprompt.data.splits.names import parse_split_name
from vlprompt.data.splits.sampling import add_validation_split, split_per_class

FilesByClass = dict[str, list[Path]]  # class id -> files


def read_image_folder(root: Path) -> RawDataset:
    """Read classes and records of train, val and test, with a note on how the splits were made.

    A split that `vlprompt data split` saved in the folder is taken as it is. With train/ and test/ above the classes
    these are taken as they are, and a fifth of train becomes val unless there is one. Otherwise each class is cut
    50:20:30 (CoOp's rule for sets without a split), always the same way. Where the sub-folders are domains
    (find_domain_folders), each class of each domain is cut so.

    Raises:
        ValueError: for a folder without classes, an empty class, classes that differ between splits or domains, and two
            folders of one id.
    """
    if (root / SAVED_SPLIT_FILE).is_file():
        return read_split_file(root / SAVED_SPLIT_FILE, root)
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    split_folders = {part: path for path in folders if (part := parse_split_name(path.name)) is not None}
    if split_folders and not {"train", "test"} <= set(split_folders):
        raise ValueError(
            f"{str(root)!r}: expected both train/ and test/, got {', '.join(sorted(split_folders))}/. Add the other, "
            "or put the class folders at the top."
        )
    if not split_folders and (domain_folders := find_domain_folders(root)):
        return _read_domain_folders(root, domain_folders)
    files = {part: _list_class_files(path) for part, path in (split_folders or {"all": root}).items()}
    keys = list(files["train"] if split_folders else files["all"])
    _require_same_classes(files, keys, root)
    records = {
        part: [ImageRecord(file.relative_to(root).as_posix(), key) for key in keys for file in classes[key]]
        for part, classes in files.items()
    }
    if split_folders:
        records, note = add_validation_split(records)
    else:
        records, note = split_per_class(records["all"]), "each class cut 50:20:30 into train, val and test"
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


def _list_class_files(path: Path) -> FilesByClass:
    """Return {id: files} of the sub-folders, in the order of their names."""
    classes: FilesByClass = {}
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
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
