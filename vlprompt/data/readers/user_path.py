"""Read images from a user's own folder or file."""

from dataclasses import replace

from vlprompt.data.dataset import RawDataset
from vlprompt.data.sources import UserPath

DATASET_SUFFIXES = (".csv", ".tsv", ".jsonl", ".npz", ".json")  # files that are datasets


def read_user_path(source: UserPath, layout: str | None = None) -> RawDataset:
    """Read a folder or file of images.

    Args:
        source: its path.
        layout: of a folder, instead of the one that is recognised.

    Raises:
        ValueError: for a file of another kind and for what is wrong in it.
    """
    if source.path.is_dir():
        from vlprompt.data.readers.image_folder import read_image_folder

        raw = read_image_folder(source.path, layout)
    elif source.path.suffix.lower() in DATASET_SUFFIXES:
        from vlprompt.data.readers.table import read_dataset_file

        raw = read_dataset_file(source.path)
    else:
        raise ValueError(
            "dataset: expected a card, a folder with one sub-folder of images per class, or a file "
            f"{', '.join(DATASET_SUFFIXES)}, got the file {source.dataset!r}. Use one of them."
        )
    return replace(raw, name=source.name, where=source.describe())
