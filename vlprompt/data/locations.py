"""Where datasets lie on this machine and where they come from."""

from pathlib import Path
from typing import TYPE_CHECKING

from vlprompt.runtime.settings import DATA_ROOT_VARIABLE, SETTINGS

if TYPE_CHECKING:
    from vlprompt.data.cards import Card

ROOT_HELP = f"Datasets lie below --root, else {DATA_ROOT_VARIABLE}, else ./data"


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder of all datasets: `root`, else the environment's, else ./data."""
    return Path(root).expanduser() if root else SETTINGS.get_data_root()


def dataset_folder(folder: str, root: str | Path | None = None) -> Path:
    """Return the folder of one dataset below the data root."""
    return data_root(root) / folder


def describe_source(card: "Card") -> str:
    """Return where the data come from, in a few words."""
    urls = [step.url for step in getattr(card, "downloads", ()) if step.url is not None]
    hub = getattr(card, "hub", None)
    if hub is not None and not isinstance(hub, str):
        return " ".join(filter(None, [f"huggingface:{hub.path}", hub.name]))
    return urls[0] if urls else getattr(card, "manual_download", None) or hub or "its authors"
