"""ImageNetV2: folders called by the label as a number, 0 to 999; sorted as text they would be 0, 1, 10, 100 ..."""

from pathlib import Path

from vlprompt.data.dataset import Row
from vlprompt.data.images.decoding import files_under
from vlprompt.data.layouts import Parts


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    rows = list[Row]()
    for place, path in sorted((int(p.name), p) for p in images.iterdir() if p.is_dir() and p.name.isdecimal()):
        if place >= len(ids):
            raise ValueError(f"{str(path)!r} is the label {place}; the card has 0 to {len(ids) - 1}")
        rows += [Row(file.relative_to(images).as_posix(), ids[place]) for file in files_under(path)]
    return {"test": rows}, ""
