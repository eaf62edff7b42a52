"""DomainNet: lists clipart_train.txt, clipart_test.txt ... with lines "clipart/airplane/clipart_002_000001.jpg 1".

A class is the second folder of a path, called so in every domain; the labels of the lists order the classes.
"""

from pathlib import Path

from vlprompt.data.found import Row
from vlprompt.data.layouts import Parts, held, labels_of, put_together

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def classes(folder: Path, images: Path) -> dict[str, str]:
    """{folder: name} of the classes that are on the lists."""
    of_label: dict[int, str] = {}
    for rows in _lists(folder).values():
        for path, label in rows:
            key = path.split("/")[1]
            if of_label.setdefault(label, key) != key:
                raise ValueError(f"{folder}: the lists give {path!r} and images of {of_label[label]!r} one label")
    keys = [of_label[label] for label in sorted(of_label)]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"{folder}: the lists give images of {twice[0]!r} two labels; take lists that belong together")
    return {key: key.replace("_", " ") for key in keys}


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    found = _lists(folder)
    for domain in DOMAINS:
        if both := {path for path, _ in found[domain, "train"]} & {path for path, _ in found[domain, "test"]}:
            raise ValueError(f"{folder}: {min(both)!r} stands in {domain}_train.txt and in {domain}_test.txt")
    domains = {
        domain: {part: [Row(path, path.split("/")[1]) for path, _ in found[domain, part]] for part in ("train", "test")}
        for domain in DOMAINS
    }
    return put_together(domains, held(sizes))


def _lists(folder: Path) -> dict[tuple[str, str], list[tuple[str, int]]]:
    """(path, label) of each domain and part."""
    found = {}
    for domain in DOMAINS:
        for part in ("train", "test"):
            file = folder / f"{domain}_{part}.txt"
            found[domain, part] = list(labels_of(file).items())
            for path, _ in found[domain, part]:
                if path.count("/") != 2 or not path.startswith(f"{domain}/"):
                    raise ValueError(f"{file}: {path!r} is not {domain}/CLASS/FILE; take the list of that domain")
    return found
