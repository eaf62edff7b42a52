"""A folder per class, called by its id, and no lists: Caltech-101, EuroSAT, ImageNet's Sketch, A and R.

Sets without a split are cut; sets that are a test only (the card's sizes say so) are all test.
"""

from pathlib import Path

from vlprompt.data.dataset import Row, joined
from vlprompt.data.images.decoding import files_under
from vlprompt.data.layouts import Parts
from vlprompt.data.splits.sampling import cut


def rows_of(images: Path, ids: list[str], inside: str = "") -> tuple[list[Row], str]:
    """Rows of images/<inside>/<id>/, files sorted, and a note that names folders which are no class."""
    there = {path.name for path in (images / inside).iterdir() if path.is_dir() and not path.name.startswith(".")}
    rows = [
        Row(file.relative_to(images).as_posix(), key)
        for key in ids
        if key in there
        for file in files_under(images / inside / key)
    ]
    left = sorted(there - set(ids))
    some = ", ".join(left[:4]) + " ..." * (len(left) > 4)
    return rows, f"folders that are not on the card are left out: {some}" if left else ""


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    rows, note = rows_of(images, ids)
    if set(sizes) == {"test"}:
        return {"test": rows}, note
    return cut(rows), joined("each class cut 50:20:30 into train, val and test", note)
