"""Read datasets by a name that a library knows: torchvision:CIFAR10, huggingface:OWNER/NAME."""

import importlib
import inspect
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlprompt.core.class_names import DEFAULT_TEMPLATE, Names
from vlprompt.data.dataset import RawDataset, build_class_names
from vlprompt.data.locations import data_root
from vlprompt.data.readers.python_objects import OBJECTS_HINT, read_columns, read_image_datasets
from vlprompt.data.sources import HubName
from vlprompt.data.splits.names import SPLIT_NAMES, assign_splits
from vlprompt.runtime.errors import suggest_nearest


def read_hub_name(source: HubName, root: str | Path | None = None) -> RawDataset:
    """Read a dataset that a library knows.

    torchvision's lie below the data root and are only downloaded by `vlprompt data prepare`; Hugging Face's are
    downloaded when they are named, into its own cache.

    Raises:
        ValueError: for a name that the library does not know and for a dataset of another kind.
        OSError: for a dataset that is not here.
    """
    if source.library == "torchvision":
        raw = read_torchvision(source, root, template=DEFAULT_TEMPLATE)
    else:
        raw = _read_huggingface(source)
    return replace(raw, where=raw.name, hint=OBJECTS_HINT)


def read_torchvision(
    source: HubName, root: str | Path | None = None, names: Names | None = None, template: str | None = None
) -> RawDataset:
    """Read a dataset of torchvision's.

    Args:
        source: its name.
        root: the folder of all datasets.
        names: the classes of a card (default: the dataset's own).
        template: the prompt template of the dataset's own classes.

    Raises:
        ValueError: where the numbers of classes differ.
        OSError: for a dataset that is not here.
    """
    datasets = _load_torchvision(source, root, download=False)
    classes = getattr(datasets["train"], "classes", names)
    if classes is None:
        raise ValueError(
            f"{source.dataset}: expected a dataset that names its classes, got one without names. Write a card that "
            f"names them, with `hub: {source.dataset}`."
        )
    if names is None:
        names = build_class_names({str(i): text for i, text in enumerate(classes)}, source.dataset, template)
    if len(classes) != len(names):
        raise ValueError(
            f"{source.dataset}: expected {len(names)} classes as on the card, got {len(classes)}. Correct the card."
        )
    return read_image_datasets(datasets, names, source.name.lower())


def download_torchvision(source: HubName) -> None:
    """Download a dataset of torchvision's into the data root, unless it is there."""
    _load_torchvision(source, None, download=True)


def _load_torchvision(source: HubName, root: str | Path | None, download: bool) -> dict[str, Any]:
    """Return the torchvision datasets of each split."""
    from torchvision import datasets

    known = [n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))]
    if source.name not in known:
        raise ValueError(
            f"dataset: expected a dataset of torchvision, got {source.name!r}; {suggest_nearest(source.name, known)}"
        )
    dataset_class = getattr(datasets, source.name)
    parameters = inspect.signature(dataset_class).parameters
    shared: dict[str, Any] = {"root": str(data_root(root))} if "root" in parameters else {}
    shared |= {"download": True} if download and "download" in parameters else {}
    splits = {}
    for part, options in _split_options(parameters).items():
        try:
            splits[part] = dataset_class(**shared, **options)
        except ValueError as error:  # a split that it does not have
            if part == "train":
                raise ValueError(f"{source.dataset}: {error}") from error
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(
                f"{source.dataset}: expected its files under {str(data_root(root))!r}, got none "
                f"({str(error).splitlines()[0]}). Get them by `vlprompt data prepare {source.dataset} --download`."
            ) from error
        except TypeError as error:
            raise ValueError(
                f"{source.dataset}: expected a dataset that needs only a folder, got one that needs more ({error}). "
                "Make it in Python and pass it to vlprompt.data.from_torchvision."
            ) from error
    return splits


def _split_options(parameters: Container[str]) -> dict[str, dict[str, Any]]:
    """Return the arguments that select each split of a torchvision class with these parameters."""
    if "train" in parameters:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" in parameters:
        return {part: {"split": part} for part in SPLIT_NAMES}
    return {"train": {}}


def _read_huggingface(source: HubName) -> RawDataset:
    """Read the columns of images and labels of a dataset of the Hugging Face Hub."""
    splits = _load_huggingface(source)
    columns = next(iter(splits.values())).features
    image = next((c for c, feature in columns.items() if type(feature).__name__ == "Image"), None)
    label = next((c for c, feature in columns.items() if type(feature).__name__ == "ClassLabel"), None)
    if image is None or label is None:
        raise ValueError(
            f"{source.dataset!r}: expected a column of images and one of named classes, got the columns "
            f"{', '.join(columns)}. Open it in Python and name them: vlprompt.data.from_huggingface(dataset, "
            "image=..., label=..., names=[...])."
        )
    return read_columns(splits, image, label, name=source.name.rstrip("/").rpartition("/")[2])


def _load_huggingface(source: HubName) -> dict[str, Any]:
    """Download a dataset; return its train, val and test."""
    try:
        load = importlib.import_module("datasets").load_dataset
    except (ImportError, AttributeError) as error:  # a folder of that name is no package
        raise ValueError(
            f"{source.dataset!r}: expected the package datasets, got none. Run pip install 'vlprompt[huggingface]'."
        ) from error
    try:
        all_splits = dict(load(source.name))
    except (OSError, ValueError, RuntimeError) as error:
        raise OSError(
            f"{source.dataset}: opening failed: {' '.join(str(error).split())[:300]}. Check its name and the network."
        ) from error
    splits = {part: all_splits[name] for part, name in assign_splits(all_splits, repr(source.dataset)).items()}
    if "train" not in splits:
        raise ValueError(
            f"{source.dataset!r}: expected the split train, got {', '.join(map(str, all_splits))}. Open it in Python "
            "and pass its splits to vlprompt.data.from_huggingface."
        )
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")  # many keep the labels of test to themselves
    return splits
