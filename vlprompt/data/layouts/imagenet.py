"""ImageNet: images/train/<wnid>/*.JPEG and images/val/<wnid>/*.JPEG; its validation set is the test."""

from pathlib import Path

from vlprompt.data.dataset import join_notes
from vlprompt.data.layouts import SplitRecords
from vlprompt.data.layouts.folders import list_class_records


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    for part in ("train", "val"):
        if not (images / part).is_dir():
            raise FileNotFoundError(
                f"{str(images)!r}: expected {part}/ with a folder per class (n01440764 ...), got none. Unpack the "
                "archive there."
            )
    train, train_note = list_class_records(images, ids, "train")
    test, test_note = list_class_records(images, ids, "val")
    return {"train": train, "test": test}, join_notes(train_note, test_note)
