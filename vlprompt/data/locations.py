"""Where datasets with a card lie on this machine, and how they are read there."""

import os
from pathlib import Path
from typing import Any

ROOT = "VLPROMPT_DATA"


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds the folders of all datasets: what is given, else the environment's, else ./data."""
    return Path(root or os.environ.get(ROOT) or "data").expanduser()


def folder_of(card: dict[str, Any], root: str | Path | None = None) -> Path:
    return data_root(root) / card["folder"]


def source_of(card: dict[str, Any]) -> str:
    """Where the data come from, in a few words."""
    urls = [d["url"] for d in card.get("downloads", ()) if "url" in d]
    if isinstance(hub := card.get("hub", "its authors"), dict):  # of texts
        return " ".join(("huggingface:" + hub["path"], *([hub["name"]] if "name" in hub else [])))
    return urls[0] if urls else card.get("by_hand", hub)
