"""Folders of domains, domain/[images/]class/image: which they are, their classes matched by name, and their splits."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlprompt.data.dataset import ImageRecord, normalize_name
from vlprompt.data.images.files import has_images, list_folders, list_image_files
from vlprompt.data.splits.sampling import split_per_class

FoldersByName = dict[str, list[Path]]  # normalized name -> folders of that name


def group_folders_by_name(path: Path) -> FoldersByName:
    """Return the sub-folders by their normalized names, sorted."""
    folders: FoldersByName = {}
    for folder in list_folders(path):
        folders.setdefault(normalize_name(folder.name), []).append(folder)
    return folders


def find_class_root(domain: Path) -> Path:
    """Return where the class folders of a domain are: in it, or in its images/, as Office-31 has them."""
    images = domain / "images"
    return images if images.is_dir() and not has_images(images) and group_folders_by_name(images) else domain


def find_domain_folders(root: Path) -> dict[str, Path]:
    """Return {name: folder} of the sub-folders, where they are domains; else nothing.

    They are where there are two or more, none holds an image itself, and a folder in them has the same name in two of
    them and in at least half.
    """
    class_roots = list_class_roots(root)
    counts = Counter(name for class_root in class_roots.values() for name in group_folders_by_name(class_root))
    has_shared_class = max(counts.values(), default=0) >= max(2, len(class_roots) / 2)
    return class_roots if has_shared_class and len(counts) > 1 else {}


def list_class_roots(root: Path) -> dict[str, Path]:
    """Return {sub-folder: where class folders are in it}, sorted; nothing where one has images itself or no folders."""
    class_roots: dict[str, Path] = {}
    for folder in list_folders(root):
        class_root = find_class_root(folder)
        if has_images(class_root) or not list_folders(class_root):
            return {}
        class_roots[unicodedata.normalize("NFC", folder.name).strip()] = class_root
    return dict(sorted(class_roots.items()))


def collect_class_ids(domain_folders: Mapping[str, Path]) -> list[str]:
    """Return the ids of the classes: the names of their folders in the first domain that has them."""
    keys: dict[str, str] = {}
    for class_root in domain_folders.values():
        for name, folders in group_folders_by_name(class_root).items():
            keys.setdefault(name, unicodedata.normalize("NFC", folders[0].name).strip())
    return sorted(keys.values())


def list_domain_records(
    root: Path, domain_folders: Mapping[str, Path], ids: Sequence[str], hint: str = ""
) -> tuple[list[ImageRecord], list[str]]:
    """List the records of all domains, in their order and class by class.

    Args:
        root: the folder that paths begin in.
        domain_folders: {domain: the folder of its classes}.
        ids: the classes; each is in the folder of its name, but for case, spaces, _ and -.
        hint: how errors end.

    Returns:
        The records, and the names of folders that are none of the classes.

    Raises:
        ValueError: for a domain without classes, a class in two folders, one without images and one that only other
            domains have; it names the domain.
    """
    ids_by_name = {normalize_name(key): key for key in ids}
    if len(ids_by_name) < len(ids):
        key = next(key for key in ids if ids_by_name[normalize_name(key)] != key)
        raise ValueError(
            f"classes: expected names that differ in more than case, spaces, _ and -, got {key!r} and "
            f"{ids_by_name[normalize_name(key)]!r}. Rename one."
        )
    folders = {domain: group_folders_by_name(path) for domain, path in domain_folders.items()}
    all_names = {name for domain_classes in folders.values() for name in domain_classes}
    records = list[ImageRecord]()
    for domain, domain_classes in folders.items():
        where = f"the domain {domain!r} ({str(domain_folders[domain])!r})"
        if not domain_classes.keys() & ids_by_name.keys():
            raise ValueError(f"{where}: expected a folder for each class such as {ids[0]!r}, got none{hint}. Add them.")
        for name, key in ((name, key) for name, key in ids_by_name.items() if name in all_names):
            files = _list_class_files(root, domain_classes.get(name, []), f"{where}, the class {key!r}")
            if not files:
                lacking = "images" if name in domain_classes else "a folder"
                raise ValueError(
                    f"{where}: expected {lacking} of the class {key!r}, got none{hint}. Every domain needs every "
                    "class: add its images, or remove the class from all domains."
                )
            records += [ImageRecord(file, key, domain) for file in files]
    other = {p[0].name for classes in folders.values() for name, p in classes.items() if name not in ids_by_name}
    return records, sorted(other)


def _list_class_files(root: Path, folders: Sequence[Path], where: str) -> list[str]:
    """Return the sorted paths, from root, of the images of one class in one domain; ValueError for two folders."""
    if len(folders) > 1:
        raise ValueError(
            f"{where}: expected one folder, got {folders[0].name!r} and {folders[1].name!r}. Put their images together."
        )
    return sorted(file.relative_to(root).as_posix() for folder in folders for file in list_image_files(folder))


def split_each_domain(records: Sequence[ImageRecord]) -> tuple[dict[str, list[ImageRecord]], str]:
    """Split each class of each domain as `split_per_class` does, domain after domain; return records and a note."""
    records_by_domain: dict[str | None, list[ImageRecord]] = {}
    for record in records:
        records_by_domain.setdefault(record.domain, []).append(record)
    splits: dict[str, list[ImageRecord]] = {"train": [], "val": [], "test": []}
    for domain_records in records_by_domain.values():
        for part, part_records in split_per_class(domain_records).items():
            splits[part] += part_records
    return splits, "each class of each domain cut 50:20:30 into train, val and test"
