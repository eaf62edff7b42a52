"""DomainNet: lists clipart_train.txt, clipart_test.txt ... with lines "clipart/airplane/clipart_002_000001.jpg 1".

The lists lie beside the folders of the domains or in splits/. A class is the second folder of a path, called so in
every domain; the labels of the lists order the classes.
"""

from collections.abc import Sequence
from pathlib import Path

from vlprompt.data.dataset import Row
from vlprompt.data.layouts import Parts, held, labels_of, put_together

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
LISTS = (".", "splits")  # where the lists may lie


def classes(
    folder: Path, images: Path, domains: Sequence[str] = DOMAINS, lists: Sequence[str] = LISTS
) -> dict[str, str]:
    """{folder: name} of the classes that are on the lists."""
    of_label: dict[int, str] = {}
    for rows in _lists(folder, domains, lists).values():
        for path, label in rows:
            key = path.split("/")[1]
            if of_label.setdefault(label, key) != key:
                raise ValueError(f"{folder}: the lists give {path!r} and images of {of_label[label]!r} one label")
    keys = [of_label[label] for label in sorted(of_label)]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"{folder}: the lists give images of {twice[0]!r} two labels; take lists that belong together")
    return {key: key.replace("_", " ") for key in keys}


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int],
         domains: Sequence[str] = DOMAINS, lists: Sequence[str] = LISTS) -> tuple[Parts, str]:  # fmt: skip
    found = _lists(folder, domains, lists)
    if missing := [domain for domain in domains if not (images / domain).is_dir()]:
        raise FileNotFoundError(
            f"{str(images)!r} has no folder {', '.join(map(repr, missing))}; it needs one for each of the domains "
            f"{', '.join(domains)}"
        )
    for domain in domains:
        if both := {path for path, _ in found[domain, "train"]} & {path for path, _ in found[domain, "test"]}:
            raise ValueError(f"{folder}: {min(both)!r} stands in {domain}_train.txt and in {domain}_test.txt")
    parts = {
        domain: {part: [Row(path, path.split("/")[1]) for path, _ in found[domain, part]] for part in ("train", "test")}
        for domain in domains
    }
    return put_together(parts, held(sizes))


def _lists(folder: Path, domains: Sequence[str], lists: Sequence[str]) -> dict[tuple[str, str], list[tuple[str, int]]]:
    """(path, label) of each domain and part."""
    found = {}
    for domain in domains:
        for part in ("train", "test"):
            files = [folder / place / f"{domain}_{part}.txt" for place in lists]
            file = next((file for file in files if file.is_file()), files[0])
            found[domain, part] = list(labels_of(file).items())
            for path, _ in found[domain, part]:
                if path.count("/") != 2 or not path.startswith(f"{domain}/"):
                    raise ValueError(f"{file}: {path!r} is not {domain}/CLASS/FILE; take the list of that domain")
    return found
