"""mini-DomainNet: DomainNet's images in four domains by the lists splits_mini/clipart_train.txt ... of Dassl's authors.

Their lines are as DomainNet's, with the labels 0 to 125.
"""

from pathlib import Path

from vlprompt.data.layouts import Parts, domainnet

DOMAINS, LISTS = ("clipart", "painting", "real", "sketch"), ("splits_mini",)


def classes(folder: Path, images: Path) -> dict[str, str]:
    """{folder: name} of the classes that are on the lists."""
    return domainnet.classes(folder, images, DOMAINS, LISTS)


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    return domainnet.read(folder, images, ids, sizes, DOMAINS, LISTS)
