"""Oxford Flowers: imagelabels.mat (a class from 1 for each image), setid.mat (trnid, valid, tstid), cat_to_name.json.

The images are jpg/image_00001.jpg ...; paths begin in jpg/ or, as VPT's, above it.
"""

import json
from pathlib import Path
from typing import Any

from vlprompt.data.dataset import Row
from vlprompt.data.layouts import Parts, arrays_of, at, text_of


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    labels: Any = arrays_of(folder / "imagelabels.mat")["labels"]
    sets: Any = arrays_of(folder / "setid.mat")
    if (file := folder / "cat_to_name.json").is_file():
        for number, name in json.loads(text_of(file)).items():
            if at(ids, number, file) != name:
                raise ValueError(f"{file} calls the class {number} {name!r}, but the card {at(ids, number, file)!r}")
    inside = "jpg/" if images == folder else ""
    parts = {
        part: [Row(f"{inside}image_{i:05d}.jpg", at(ids, labels[i - 1], folder)) for i in sets[key].ravel().tolist()]
        for part, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
    }
    return parts, "the authors' split (setid.mat)"
