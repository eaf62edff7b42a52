"""Take the paths of this machine out of what is shared: datasets, files of weights, any other path in a setting."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from vlprompt.data.cards import list_cards
from vlprompt.data.sources import LIBRARIES

DATASET_KEYS, PAIR_KEYS = ("dataset", "targets"), ("source", "target")
NO_SOURCE = "none"
WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
LOCAL_MARKS = ("@", "local-dir:")  # of a backbone's spec, before a path


def shorten_path(text: str) -> str:
    """Return ./NAME for a path that only this machine has, and any other text as it is."""
    if WINDOWS_PATH.match(text):
        return f"./{PureWindowsPath(text).name}"
    is_path = text.startswith(("/", "~", "./", "../", ".\\", "..\\")) or text in (".", "..")
    return f"./{Path(text).expanduser().absolute().name}" if is_path else text


def shorten_dataset(dataset: str) -> str:
    """Return the name of a dataset that opens everywhere, and ./NAME for a path."""
    is_name = (
        dataset == NO_SOURCE or dataset in list_cards() or dataset.partition(":")[0] in LIBRARIES or "#" in dataset
    )
    return dataset if is_name else f"./{Path(shorten_path(dataset)).name}"


def shorten_settings(value: Any, key: str = "", dataset_keys: Collection[str] = DATASET_KEYS) -> Any:
    """Return settings, nested or not, with each path shortened.

    Args:
        value: what YAML and JSON hold.
        key: the key that it stands under.
        dataset_keys: keys of datasets, whose names may look like no path.
    """
    if isinstance(value, Mapping):
        return {name: shorten_settings(part, name, dataset_keys) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [shorten_settings(part, key, dataset_keys) for part in value]
    if isinstance(value, str) and key == "backbone":
        return shorten_backbone(value)[0]
    if isinstance(value, str):
        return shorten_dataset(value) if key in dataset_keys else shorten_path(value)
    return value


def get_dataset_keys(task: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of a task that name datasets: source and target are datasets where there is no other."""
    return DATASET_KEYS + (PAIR_KEYS if task.get("dataset") is None else ())


def list_datasets(task: Mapping[str, Any]) -> list[str]:
    """Return the datasets of a task by name, each once."""
    names = list[str]()
    for key in get_dataset_keys(task):
        value = task.get(key)
        names += [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
    return [name for name in dict.fromkeys(names) if name != NO_SOURCE]


def shorten_backbone(spec: str) -> tuple[str, bool]:
    """Return a backbone's spec without the folders of a file, and whether its weights lie on this machine alone."""
    for mark in LOCAL_MARKS:
        if mark in spec:
            name, _, path = spec.partition(mark)
            return f"{name}{mark}{Path(shorten_path(path)).name}", True
    scheme, separator, argument = spec.partition(":")
    is_local = bool(separator) and (Path(argument).expanduser().is_dir() or shorten_path(argument) != argument)
    return (f"{scheme}:{Path(argument).expanduser().absolute().name}", True) if is_local else (spec, False)
