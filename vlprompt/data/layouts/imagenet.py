"""ImageNet: images/train/<wnid>/*.JPEG and images/val/<wnid>/*.JPEG; its validation set is the test."""

from pathlib import Path

from vlprompt.data.dataset import joined
from vlprompt.data.layouts import Parts
from vlprompt.data.layouts.folders import rows_of


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    for part in ("train", "val"):
        if not (images / part).is_dir():
            raise FileNotFoundError(f"{str(images)!r} has no {part}/ with a folder per class (n01440764 ...) in it")
    (train, left), (test, strange) = rows_of(images, ids, "train"), rows_of(images, ids, "val")
    return {"train": train, "test": test}, joined(left, strange)
