"""How published datasets lie on a disk: one file per family, named by `layout` on a card."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vlprompt.data.dataset import ImageRecord, LabelSet, shorten_list
from vlprompt.data.images.files import list_folders
from vlprompt.data.splits.names import SPLIT_NAMES
from vlprompt.data.splits.sampling import add_validation_split

SplitRecords = dict[str, list[ImageRecord]]


class Layout(Protocol):
    """A file of this folder: reads how one family of datasets lies on a disk."""

    def read(
        self, folder: Path, images: Path, ids: list[str], sizes: dict[str, int], **options: dict[str, str]
    ) -> tuple[SplitRecords, str]:
        """Return the records of each split and a note.

        Args:
            folder: the folder of the dataset.
            images: the folder in it that paths begin in.
            ids: the ids of the card's classes in label order.
            sizes: how many images the card says each split has.
            options: `domains`, {folder: word}, for a card that has them.
        """
        ...


class ClassListingLayout(Layout, Protocol):
    """A layout that names classes which the card only counts."""

    def list_classes(self, folder: Path, images: Path) -> dict[str, str]:
        """Return {class id: name} of the classes that are there, in label order."""
        ...


class LabelSetLayout(Protocol):
    """A layout of images that may have several labels."""

    def read_label_sets(
        self, folder: Path, images: Path, ids: list[str]
    ) -> tuple[SplitRecords, dict[str, LabelSet], str]:
        """Return the records of each split, with "" as their class, the labels by path, and a note."""
        ...


def read_required_text(path: Path) -> str:
    """Return the text of a file of a dataset; OSError where it is missing."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path.parent)!r}: expected {path.name}, got no such file. It comes with the dataset and lists its "
            "images; get it again."
        )
    return path.read_text("utf-8")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file that are not blank, stripped."""
    return [line.strip() for line in read_required_text(path).splitlines() if line.strip()]


def list_folder_names(images: Path) -> list[str]:
    """Return the names of the sub-folders that are not hidden, sorted."""
    return [path.name for path in list_folders(images)]


def validation_fraction(sizes: Mapping[str, int]) -> float:
    """Return the fraction of the training part that the card's val is, in hundredths; a fifth if it has none."""
    return round(sizes["val"] / (sizes["train"] + sizes["val"]), 2) if "val" in sizes else 0.2


def load_mat_file(path: Path) -> dict[str, Any]:
    """Load a .mat file; OSError where it is missing, ValueError where it is broken."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        read_required_text(path)
    try:
        return loadmat(str(path), squeeze_me=True)
    except (MatReadError, ValueError, TypeError, OSError, NotImplementedError) as error:
        raise ValueError(
            f"{str(path)!r}: expected a MATLAB file, got one that can't be read ({error}). Get it again."
        ) from error


def class_id_at(ids: Sequence[str], number: object, path: Path) -> str:
    """Return the class id of a number from 1 on; ValueError for one that the card does not have."""
    index = int(str(number))
    if not 1 <= index <= len(ids):
        raise ValueError(f"{path}: expected class numbers 1 to {len(ids)} as on the card, got {index}. Get it again.")
    return ids[index - 1]


def read_label_list(path: Path, n_classes: int | None = None) -> dict[str, int]:
    """Return {path: label} of lines "path label", in their order.

    Raises:
        ValueError: for another line, a label from n_classes on, a path outside the folder and one that stands twice.
    """
    labels: dict[str, int] = {}
    for number, line in enumerate(read_required_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        image, _, label = line.strip().rpartition(" ")
        image = image.strip()
        if not image or not label.isdecimal():
            raise ValueError(
                f'{where}: expected "path label", the label a whole number from 0, got {line!r}. Correct the line.'
            )
        if n_classes is not None and int(label) >= n_classes:
            raise ValueError(
                f"{where}: expected labels 0 to {n_classes - 1} as on the card, got {label}. Correct the list or the "
                "card."
            )
        if image.startswith("/") or ".." in image.split("/"):  # no Path: lists may have half a million lines
            raise ValueError(
                f"{where}: expected a path inside the folder of the list, got {image!r}. Correct the list."
            )
        if image in labels:
            raise ValueError(f"{where}: expected each image once, got {image!r} twice. Remove one line.")
        labels[image] = int(label)
    if not labels:
        raise ValueError(f"{path}: expected a line for each image, got none. Get it again.")
    return labels


def combine_domains(domains: Mapping[str, SplitRecords], val_fraction: float) -> tuple[SplitRecords, str]:
    """Join the splits of every domain, each with its own val: a fraction of each class's train."""
    combined: SplitRecords = {part: [] for part in SPLIT_NAMES}
    note = ""
    for name, records in domains.items():
        complete, note = add_validation_split(records, val_fraction)
        for part, part_records in complete.items():
            combined[part] += [record._replace(domain=name) for record in part_records]
    return combined, f"{note}, in every domain"


def note_ignored_folders(names: Iterable[str]) -> str:
    """Return a note that names folders which are no class; "" where there are none."""
    names = sorted(names)
    return f"folders that are not on the card are left out: {shorten_list(names, 4)}" if names else ""
