"""What a dataset setting refers to: a card, a user's own path, a name that a library knows, or data that are open."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

from vlprompt.data.cards import is_card, list_cards, load_card
from vlprompt.data.dataset import Data
from vlprompt.runtime.errors import suggest_nearest

if TYPE_CHECKING:
    from vlprompt.data.cards import Card

LIBRARIES = ("torchvision", "huggingface")  # whose datasets are named LIBRARY:NAME


@dataclass(frozen=True)
class HubName:
    """A dataset that a library knows, torchvision:CIFAR10 or huggingface:OWNER/NAME."""

    library: str
    name: str

    @property
    def dataset(self) -> str:
        """The name that opens it again."""
        return f"{self.library}:{self.name}"


@dataclass(frozen=True)
class UserPath:
    """A user's own folder or file; `dataset` is the path as it was typed."""

    dataset: str

    @property
    def path(self) -> Path:
        """The path with ~ expanded."""
        return Path(self.dataset).expanduser()

    @property
    def name(self) -> str:
        """The name of the folder or file."""
        return self.path.absolute().name

    def describe(self) -> str:
        """Return how error messages call it."""
        return f"the {'folder' if self.path.is_dir() else 'file'} {self.dataset!r}"


DatasetSource = Union["Card", HubName, UserPath, Data]


def is_folder(dataset: str | Data | None) -> bool:
    """Whether a dataset setting refers to a user's own folder, whose layout is recognised, or to a card of folders."""
    if not isinstance(dataset, str):
        return False
    if is_card(dataset):
        return load_card(dataset).kind == "members"
    return dataset.partition(":")[0] not in LIBRARIES and UserPath(dataset).path.is_dir()


def select_layout(layout: str | None, dataset: str | Data | None) -> str | None:
    """Return the layout for one of several datasets: None for those that are no folders."""
    return layout if is_folder(dataset) else None


def require_folder(layout: str | None, *datasets: str | Data | None) -> None:
    """Raise ValueError for a layout where no dataset is a user's own folder."""
    if layout is not None and not any(map(is_folder, datasets)):
        named = [dataset.name if isinstance(dataset, Data) else dataset for dataset in datasets if dataset is not None]
        raise ValueError(
            f"task.layout: expected none for a dataset that is no folder of images, got {layout!r} for "
            f"{', '.join(map(repr, named))}. Leave it out."
        )


def find_shadowed_path(dataset: str, card_folder: Path | None = None) -> Path | None:
    """Return the file or folder here that has the name of a card, which is taken instead.

    Args:
        dataset: a dataset setting.
        card_folder: the folder of the card's own data, which may be that path.
    """
    path = Path(dataset)
    if dataset not in list_cards() or not path.exists():
        return None
    return None if card_folder is not None and card_folder.resolve() == path.resolve() else path


def resolve_source(dataset: str | Data) -> DatasetSource:
    """Return what a dataset setting refers to.

    Args:
        dataset: the name of a card, a card .yaml, LIBRARY:NAME, a folder, a file, or data that are open.

    Raises:
        ValueError: for a card that is wrong and for a path that does not exist.
    """
    if isinstance(dataset, Data):
        return dataset
    if is_card(dataset):
        return load_card(dataset)
    library, _, name = dataset.partition(":")
    if library in LIBRARIES and name:
        return HubName(library, name)
    source = UserPath(dataset)
    if not dataset.strip() or not source.path.exists():  # an empty path would be the working folder
        raise ValueError(_explain_missing(dataset))
    return source


def _explain_missing(dataset: str) -> str:
    if "#" in dataset:
        return (
            f"dataset: expected a dataset that can be opened by name, got {dataset!r}, the name and hash of an object "
            "in Python. Open it there again."
        )
    return (
        f"dataset: expected a card or a folder with one sub-folder of images per class, got {dataset!r}. "
        f"Check the name or path: {suggest_nearest(dataset, list_cards())}"
    )
