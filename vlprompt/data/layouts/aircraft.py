"""FGVC Aircraft: images_variant_train.txt, _val.txt and _test.txt with lines "1025794 707-320"; variants.txt."""

from pathlib import Path

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.layouts import SplitRecords, read_lines
from vlprompt.data.splits.names import SPLIT_NAMES


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    variants = read_lines(folder / "variants.txt")
    if unknown := [name for name in variants if name not in ids]:
        raise ValueError(
            f"variants.txt: expected the classes of the card, got {unknown[0]!r}. Get it again, or correct the card."
        )
    if variants != [key for key in ids if key in variants]:
        raise ValueError(
            f"{folder / 'variants.txt'}: expected the classes in the order of the card, got another order. Get it "
            "again, or correct the card."
        )
    records = {
        part: [
            ImageRecord(f"{line.split(' ', 1)[0]}.jpg", line.split(" ", 1)[1])
            for line in read_lines(folder / f"images_variant_{part}.txt")
        ]
        for part in SPLIT_NAMES
    }
    return records, "the authors' split, which is the literature's"
