"""FGVC Aircraft: images_variant_train.txt, _val.txt and _test.txt with lines "1025794 707-320"; variants.txt."""

from pathlib import Path

from vlprompt.data.dataset import Row
from vlprompt.data.layouts import Parts, lines_of


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    variants = lines_of(folder / "variants.txt")
    if strange := [name for name in variants if name not in ids]:
        raise ValueError(f"variants.txt has {strange[0]!r}, which is not on the card")
    if variants != [key for key in ids if key in variants]:
        raise ValueError(f"{folder / 'variants.txt'} has the classes in another order than the card")
    parts = {
        part: [
            Row(f"{line.split(' ', 1)[0]}.jpg", line.split(" ", 1)[1])
            for line in lines_of(folder / f"images_variant_{part}.txt")
        ]
        for part in ("train", "val", "test")
    }
    return parts, "the authors' split, which is the literature's"
