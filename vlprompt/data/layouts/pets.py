"""Oxford-IIIT Pets: annotations/trainval.txt and test.txt with lines "Abyssinian_100 1 1 1": name, class from 1."""

from pathlib import Path

from vlprompt.data.dataset import Row
from vlprompt.data.layouts import Parts, at, lines_of
from vlprompt.data.splits.sampling import with_val


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    def rows(file: str) -> list[Row]:
        path = folder / "annotations" / file
        words = [line.split() for line in lines_of(path) if not line.startswith("#")]
        return [Row(f"{word[0]}.jpg", at(ids, word[1], path)) for word in words]

    return with_val({"train": rows("trainval.txt"), "test": rows("test.txt")})
