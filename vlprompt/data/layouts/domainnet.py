"""DomainNet: lists clipart_train.txt, clipart_test.txt ... with lines "clipart/airplane/clipart_002_000001.jpg 1".

The lists lie beside the folders of the domains or in splits/. A class is the second folder of a path, called so in
every domain; the labels of the lists order the classes.
"""

from collections.abc import Sequence
from pathlib import Path

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.layouts import SplitRecords, combine_domains, read_label_list, validation_fraction

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
LIST_FOLDERS = (".", "splits")  # where the lists may lie


def list_classes(
    folder: Path, images: Path, domains: Sequence[str] = DOMAINS, list_folders: Sequence[str] = LIST_FOLDERS
) -> dict[str, str]:
    """Return {folder: name} of the classes that are on the lists."""
    id_of: dict[int, str] = {}
    for labels in _read_lists(folder, domains, list_folders).values():
        for path, label in labels.items():
            key = path.split("/")[1]
            if id_of.setdefault(label, key) != key:
                raise ValueError(
                    f"{folder}: expected a label for each class, got the same for {path!r} and images of "
                    f"{id_of[label]!r}. Take lists that belong together."
                )
    keys = [id_of[label] for label in sorted(id_of)]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(
            f"{folder}: expected one label for each class, got two for images of {repeated[0]!r}. Take lists that "
            "belong together."
        )
    return {key: key.replace("_", " ") for key in keys}


def read(
    folder: Path,
    images: Path,
    ids: list[str],
    sizes: dict[str, int],
    domains: Sequence[str] = DOMAINS,
    list_folders: Sequence[str] = LIST_FOLDERS,
) -> tuple[SplitRecords, str]:
    labels = _read_lists(folder, domains, list_folders)
    if missing := [domain for domain in domains if not (images / domain).is_dir()]:
        raise FileNotFoundError(
            f"{str(images)!r}: expected a folder for each of the domains {', '.join(domains)}, got no folder "
            f"{', '.join(map(repr, missing))}. Add it."
        )
    for domain in domains:
        if shared := labels[domain, "train"].keys() & labels[domain, "test"].keys():
            raise ValueError(
                f"{folder}: expected each image in one list, got {min(shared)!r} in {domain}_train.txt and in "
                f"{domain}_test.txt. Get the lists again."
            )
    records = {
        domain: {
            part: [ImageRecord(path, path.split("/")[1]) for path in labels[domain, part]] for part in ("train", "test")
        }
        for domain in domains
    }
    return combine_domains(records, validation_fraction(sizes))


def _read_lists(
    folder: Path, domains: Sequence[str], list_folders: Sequence[str]
) -> dict[tuple[str, str], dict[str, int]]:
    """Return {path: label} of each domain and split."""
    labels = {}
    for domain in domains:
        for part in ("train", "test"):
            files = [folder / list_folder / f"{domain}_{part}.txt" for list_folder in list_folders]
            file = next((file for file in files if file.is_file()), files[0])
            labels[domain, part] = read_label_list(file)
            for path in labels[domain, part]:
                if path.count("/") != 2 or not path.startswith(f"{domain}/"):
                    raise ValueError(
                        f"{file}: expected paths {domain}/CLASS/FILE, got {path!r}. Take the list of that domain."
                    )
    return labels
