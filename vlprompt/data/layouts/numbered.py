"""ImageNetV2: folders called by the label as a number, 0 to 999; sorted as text they would be 0, 1, 10, 100 ..."""

from pathlib import Path

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.images.files import list_image_files
from vlprompt.data.layouts import SplitRecords


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    records = list[ImageRecord]()
    for label, path in sorted((int(p.name), p) for p in images.iterdir() if p.is_dir() and p.name.isdecimal()):
        if label >= len(ids):
            raise ValueError(
                f"{str(path)!r}: expected labels 0 to {len(ids) - 1} as on the card, got {label}. Remove the folder, "
                "or correct the card."
            )
        records += [ImageRecord(file.relative_to(images).as_posix(), ids[label]) for file in list_image_files(path)]
    return {"test": records}, ""
