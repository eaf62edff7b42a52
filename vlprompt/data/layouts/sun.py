"""SUN397: ClassName.txt ("/a/abbey"), Training_01.txt and Testing_01.txt ("/a/abbey/sun_aaa.jpg").

A class's id is its path without the letter; its name has the words of the path reversed, as CoOp's authors write it.
"""

from pathlib import Path

from vlprompt.data.dataset import Row
from vlprompt.data.layouts import Parts, lines_of
from vlprompt.data.splits.sampling import with_val


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    def listed(file: str) -> list[str]:
        return lines_of(folder / file if (folder / file).is_file() else images / file)

    classes = [line.strip("/").split("/", 1)[1] for line in listed("ClassName.txt")]
    if strange := [key for key in classes if key not in ids]:
        raise ValueError(f"ClassName.txt has {strange[0]!r}, which is not on the card")
    if classes != [key for key in ids if key in classes]:
        raise ValueError(f"ClassName.txt in {str(folder)!r} has the classes in another order than the card")

    def rows(file: str) -> list[Row]:
        return [Row(line.strip("/"), line.strip("/").split("/", 1)[1].rsplit("/", 1)[0]) for line in listed(file)]

    parts, note = with_val({"train": rows("Training_01.txt"), "test": rows("Testing_01.txt")})
    return parts, f"{note} (Training_01, Testing_01)"
