"""How published datasets lie on a disk: one file per family, named by `layout` on a card.

Each has read(folder, images, ids, sizes): the dataset's folder, the folder in it that paths begin in, the ids of the
card's classes in label order, and how many images the card says each part has; it gives {part: rows} and a note. Where
a card only counts its classes, classes(folder, images) gives {id: name} of those that are there, in label order. The
one that reads a card's domains is also given these, {folder: word}.
"""

from pathlib import Path

from vlprompt.data.dataset import Row
from vlprompt.data.splits.sampling import with_val

Parts = dict[str, list[Row]]


def text_of(path: Path) -> str:
    """A text file of a dataset; OSError that says what is missing."""
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path.name} in {str(path.parent)!r}; it comes with the dataset and says which image is what"
        )
    return path.read_text("utf-8")


def lines_of(path: Path) -> list[str]:
    return [line.strip() for line in text_of(path).splitlines() if line.strip()]


def folders_in(images: Path) -> list[str]:
    """The names of its folders, sorted."""
    return sorted(path.name for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))


def held(sizes: dict[str, int]) -> float:
    """The share of the data's own training part that the card's val is, in hundredths; a fifth if it has none."""
    return round(sizes["val"] / (sizes["train"] + sizes["val"]), 2) if "val" in sizes else 0.2


def arrays_of(path: Path) -> dict[str, object]:
    """A .mat file; OSError where it is missing, ValueError where it is broken."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        text_of(path)
    try:
        return loadmat(str(path), squeeze_me=True)
    except (MatReadError, ValueError, TypeError, OSError, NotImplementedError) as error:
        raise ValueError(f"{str(path)!r} is not a MATLAB file that can be read ({error}); get it again") from error


def at(ids: list[str], number: object, path: Path) -> str:
    """The class of a number from 1 on; ValueError for one that the card does not have."""
    place = int(str(number))
    if not 1 <= place <= len(ids):
        raise ValueError(f"{path} has the class number {place}; the card has 1 to {len(ids)}")
    return ids[place - 1]


def labels_of(path: Path, classes: int | None = None) -> dict[str, int]:
    """{path: label} of lines "path label", in their order; ValueError that names the file and the line."""
    found: dict[str, int] = {}
    for number, line in enumerate(text_of(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        image, _, label = line.strip().rpartition(" ")
        image = image.strip()
        if not image or not label.isdecimal():
            raise ValueError(f'{where} is {line!r}; a line is "path label", the label a whole number from 0')
        if classes is not None and int(label) >= classes:
            raise ValueError(f"{where} has the label {label}; the card has the labels 0 to {classes - 1}")
        if image.startswith("/") or ".." in image.split("/"):  # lists may have half a million lines
            raise ValueError(f"{where}: {image!r} must be a path inside the folder of the list")
        if image in found:
            raise ValueError(f"{where}: {image!r} stands in the list twice")
        found[image] = int(label)
    if not found:
        raise ValueError(f"{path} has no lines; get it again")
    return found


def put_together(domains: dict[str, Parts], share: float) -> tuple[Parts, str]:
    """The parts of every domain, each with a val of its own: a share of each class's train."""
    parts, note = {part: list[Row]() for part in ("train", "val", "test")}, ""
    for name, given in domains.items():
        found, note = with_val(given, share)
        for part, rows in found.items():
            parts[part] += [row._replace(domain=name) for row in rows]
    return parts, f"{note}, in every domain"
