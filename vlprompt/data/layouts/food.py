"""Food-101: meta/train.json and test.json ({class: ["class/1005649", ...]}), or the same as lines of .txt."""

import json
from pathlib import Path

from vlprompt.data.dataset import Row
from vlprompt.data.layouts import Parts, lines_of, text_of
from vlprompt.data.splits.sampling import with_val


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    def rows(part: str) -> list[Row]:
        path = folder / "meta" / f"{part}.json"
        if path.is_file():
            names = [name for of_class in json.loads(text_of(path)).values() for name in of_class]
        else:
            names = lines_of(path.with_suffix(".txt"))
        return [Row(f"{name}.jpg", name.split("/")[0]) for name in names]

    return with_val({"train": rows("train"), "test": rows("test")})
