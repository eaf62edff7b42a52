"""mini-DomainNet: DomainNet's images in four domains by the lists splits_mini/clipart_train.txt ... of Dassl's authors.

Their lines are as DomainNet's, with the labels 0 to 125.
"""

from pathlib import Path

from vlprompt.data.layouts import SplitRecords, domainnet

DOMAINS, LIST_FOLDERS = ("clipart", "painting", "real", "sketch"), ("splits_mini",)


def list_classes(folder: Path, images: Path) -> dict[str, str]:
    """Return {folder: name} of the classes that are on the lists."""
    return domainnet.list_classes(folder, images, DOMAINS, LIST_FOLDERS)


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    return domainnet.read(folder, images, ids, sizes, DOMAINS, LIST_FOLDERS)
