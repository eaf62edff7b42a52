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
    if not source.path.exists():
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
