"""Dataset cards: what a dataset is and how its splits are made; a user's own files need none."""

from pathlib import Path

from vlprompt.data.cards import cards
from vlprompt.data.dataset import Found
from vlprompt.runtime.errors import nearest

FORMS = (".csv", ".tsv", ".jsonl", ".npz", ".json")  # files that are datasets


def find(dataset: str) -> tuple[Found, str, str]:
    """What lies in a user's folder or file, and how errors about it begin and end."""
    path = Path(dataset).expanduser()
    if path.is_dir():
        from vlprompt.data.readers.image_folder import read_folder

        return read_folder(path), f"the folder {dataset!r}", "a class needs at least 3 images, 10 or more are better"
    if path.is_file() and path.suffix.lower() in FORMS:
        from vlprompt.data.readers.table import read_file

        return read_file(path), f"the file {dataset!r}", "a class needs at least 3 images, 10 or more are better"
    if "#" in dataset:
        raise ValueError(f"{dataset!r} was given in Python as an object, by name and hash; open it there again")
    if path.is_file():
        raise ValueError(
            f"{dataset!r} is a file; a dataset is a card, a folder with one sub-folder of images per class, or a file "
            f"{', '.join(FORMS)}"
        )
    raise ValueError(
        f"there is no dataset {dataset!r}: neither a card ({nearest(dataset, cards())}) "
        "nor a folder with one sub-folder of images per class"
    )
