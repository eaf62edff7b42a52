"""Oxford Flowers: imagelabels.mat (a class from 1 for each image), setid.mat (trnid, valid, tstid), cat_to_name.json.

The images are jpg/image_00001.jpg ...; paths begin in jpg/ or, as VPT's, above it.
"""

import json
from pathlib import Path

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.layouts import SplitRecords, class_id_at, load_mat_file, read_required_text


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    labels = load_mat_file(folder / "imagelabels.mat")["labels"]
    sets = load_mat_file(folder / "setid.mat")
    if (file := folder / "cat_to_name.json").is_file():
        for number, name in json.loads(read_required_text(file)).items():
            if class_id_at(ids, number, file) != name:
                raise ValueError(
                    f"{file}: expected class {number} to be {class_id_at(ids, number, file)!r} as on the card, got "
                    f"{name!r}. Get it again, or correct the card."
                )
    subfolder = "jpg/" if images == folder else ""
    records = {
        part: [
            ImageRecord(f"{subfolder}image_{i:05d}.jpg", class_id_at(ids, labels[i - 1], folder))
            for i in sets[key].ravel().tolist()
        ]
        for part, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
    }
    return records, "the authors' split (setid.mat)"
