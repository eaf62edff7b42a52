"""Datasets by a name that a library knows: torchvision:CIFAR10, huggingface:OWNER/NAME."""

import inspect
from typing import Any

from vlprompt.core.class_names import PLAIN, Names
from vlprompt.data.dataset import Data, Found, class_names
from vlprompt.data.locations import data_root
from vlprompt.data.readers.python_objects import from_huggingface, from_torchvision, read_pictures
from vlprompt.data.splits.sampling import PARTS
from vlprompt.runtime.errors import nearest


def open_hub(dataset: str, root: Any = None, augment: str | None = None, template: str | None = None,
             download: bool = False) -> Data:  # fmt: skip
    """The data behind such a name.

    torchvision's lie under the root of all data and are fetched only with `download`; Hugging Face's are fetched when
    they are named, into its own cache. ValueError for a name that there is not or a dataset of another kind, OSError
    for one that is not here.
    """
    hub, _, name = dataset.partition(":")
    how = {"template": template or PLAIN, "augment": augment or "crop-flip"}
    if hub == "torchvision":
        parts = _torchvision(dataset, name, root, download)
        return from_torchvision(parts["train"], parts.get("test"), parts.get("val"), name=name.lower(), **how)
    found = _huggingface(dataset, name)
    columns = next(iter(found.values())).features
    image = next((c for c, feature in columns.items() if type(feature).__name__ == "Image"), None)
    label = next((c for c, feature in columns.items() if type(feature).__name__ == "ClassLabel"), None)
    if image is None or label is None:
        raise ValueError(
            f"{dataset!r} has the columns {', '.join(columns)}, but none of images or none of named classes; open it "
            "in Python and say which: vlprompt.data.from_huggingface(dataset, image=..., label=..., names=[...])"
        )
    return from_huggingface(found, image, label, name=name.rstrip("/").rpartition("/")[2], **how)


def read_hub(dataset: str, root: Any, names: Names | None = None) -> Found:
    """What such a dataset of torchvision's holds, with a card's classes or its own; ValueError where they differ."""
    name = dataset.partition(":")[2]
    parts = _torchvision(dataset, name, root, download=False)
    theirs = getattr(parts["train"], "classes", names)
    if theirs is None:
        raise ValueError(f"{dataset} does not name its classes; write a card that does, with `hub: {dataset}`")
    if names is None:
        names = class_names({str(i): text for i, text in enumerate(theirs)}, dataset)
    if len(theirs) != len(names):
        raise ValueError(f"{dataset} has {len(theirs)} classes, but the card {len(names)}")
    return read_pictures(parts, names, name.lower())


def get_hub(dataset: str) -> None:
    """Fetches a dataset of torchvision's into the root of all data, unless it is there."""
    _torchvision(dataset, dataset.partition(":")[2], None, download=True)


def _torchvision(dataset: str, name: str, root: Any, download: bool) -> dict[str, Any]:
    from torchvision import datasets

    known = [n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))]
    if name not in known:
        raise ValueError(f"torchvision has no dataset {name!r}; {nearest(name, known)}")
    cls = getattr(datasets, name)
    takes = inspect.signature(cls).parameters
    given: dict[str, Any] = {"root": str(data_root(root))} if "root" in takes else {}
    given |= {"download": True} if download and "download" in takes else {}
    if "train" in takes:
        wanted = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in takes:
        wanted = {part: {"split": part} for part in ("train", "val", "test")}
    else:
        wanted = {"train": dict[str, Any]()}
    found = {}
    for part, choice in wanted.items():
        try:
            found[part] = cls(**given, **choice)
        except ValueError as error:  # a split that it does not have
            if part == "train":
                raise ValueError(f"{dataset}: {error}") from error
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(
                f"{dataset} is not under {str(data_root(root))!r} ({str(error).splitlines()[0]}); get it by "
                f"`vlprompt data prepare {dataset} --download`"
            ) from error
        except TypeError as error:
            raise ValueError(
                f"{dataset} needs more than a folder ({error}); make it in Python and give it to "
                "vlprompt.data.from_torchvision"
            ) from error
    return found


def _huggingface(dataset: str, name: str) -> dict[str, Any]:
    import importlib

    try:
        load = importlib.import_module("datasets").load_dataset
    except (ImportError, AttributeError) as error:  # a folder of that name is no package
        raise ValueError(f"{dataset!r} needs the package datasets: pip install 'vlprompt[huggingface]'") from error
    try:
        found = dict(load(name))
    except (OSError, ValueError, RuntimeError) as error:
        raise OSError(f"{dataset} could not be opened: {' '.join(str(error).split())[:300]}") from error
    kept = {PARTS[str(part)]: one for part, one in found.items() if str(part) in PARTS}
    if "train" not in kept:
        raise ValueError(f"{dataset!r} has the splits {', '.join(map(str, found))}, but no train")
    if "test" not in kept and "val" in kept:
        kept["test"] = kept.pop("val")  # many keep the test's labels to themselves
    return kept
