"""Read datasets that are Python objects: torchvision's and Hugging Face's, and anything that is used like them."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from vlprompt.core.class_names import DEFAULT_TEMPLATE, Names, class_ids
from vlprompt.core.images import ImageItem
from vlprompt.data.dataset import Data, ImageRecord, RawDataset, build_class_names, build_dataset
from vlprompt.data.images.decoding import AUGMENTATIONS, build_image_item, convert_to_rgb, hash_array
from vlprompt.data.splits.names import SPLIT_CHOICES, parse_split_name
from vlprompt.data.splits.sampling import add_validation_split, split_per_class

OBJECT_COUNTER = itertools.count()  # two objects may look alike, so their images get keys of their own
OBJECTS_HINT = "A class needs at least 3 images."
ImageOpener = Callable[[], Image.Image]


def from_torchvision(
    train: Any,
    test: Any = None,
    val: Any = None,
    *,
    names: Sequence[str] | None = None,
    name: str | None = None,
    template: str = DEFAULT_TEMPLATE,
    augment: str = "crop-flip",
) -> Data:
    """Build data from datasets that return (image, label) by index, such as torchvision's, made without a transform.

    Each item holds a copy of its own pixels where the dataset has them all in memory (CIFAR, MNIST, SVHN); otherwise
    it holds the dataset, through which every label can be reached.

    Args:
        train: alone it is split 50:20:30 class by class.
        test: with it a fifth of train becomes val, unless there is one.
        val: the validation part.
        names: the classes in label order (default: the dataset's `classes`).
        name: the name of the dataset (default: that of its class).
        template: a prompt template with {name}.
        augment: the augmentation of training images.

    Raises:
        ValueError: for labels without a name and for images that a transform has changed into something else.
    """
    datasets = {part: one for part, one in (("train", train), ("val", val), ("test", test)) if one is not None}
    classes = names if names is not None else getattr(train, "classes", None)
    if classes is None:
        raise ValueError(
            f"names: expected the `classes` of {type(train).__name__} or names=[...], got none. Pass names=[...] in "
            "label order."
        )
    name = name or type(train).__name__.lower()
    class_names = _build_names(name, classes, template)
    return _build_data(read_image_datasets(datasets, class_names, name), template, augment)


def from_huggingface(
    dataset: Any,
    image: str = "image",
    label: str = "label",
    *,
    names: Sequence[str] | None = None,
    name: str = "huggingface",
    template: str = DEFAULT_TEMPLATE,
    augment: str = "crop-flip",
) -> Data:
    """Build data from a Hugging Face dataset, or from a dictionary of its splits.

    Each item holds the dataset, through which every label can be reached.

    Args:
        dataset: one dataset is split 50:20:30 class by class.
        image: the column of images.
        label: the column of labels.
        names: the classes in label order (default: those of the label's feature).
        name: the name of the dataset.
        template: a prompt template with {name}.
        augment: the augmentation of training images.

    Raises:
        ValueError: for a column that is not there and for labels without names.
    """
    splits: dict[str, Any] = {}
    for key, one in dataset.items() if isinstance(dataset, Mapping) else [("train", dataset)]:
        if (part := parse_split_name(key)) is None:
            raise ValueError(f"dataset: expected the splits {SPLIT_CHOICES}, got {key!r}. Pass only those.")
        if part in splits:
            raise ValueError(f"dataset: expected one {part} split, got {key!r} and another. Pass one of them.")
        splits[part] = one
    return _build_data(read_columns(splits, image, label, names, name, template), template, augment)


def read_image_datasets(datasets: Mapping[str, Any], names: Names, name: str) -> RawDataset:
    """Read the splits of datasets that return (image, label) by index; ValueError for labels without a name."""
    labels = {part: read_labels(one) for part, one in datasets.items()}
    return _build_raw_dataset(name, names, labels, {part: partial(make_opener, one) for part, one in datasets.items()})


def read_columns(
    splits: Mapping[str, Any],
    image: str,
    label: str,
    names: Sequence[str] | None = None,
    name: str = "huggingface",
    template: str = DEFAULT_TEMPLATE,
) -> RawDataset:
    """Read the splits of a Hugging Face dataset; `from_huggingface` explains the arguments."""
    features = next(iter(splits.values())).features
    for column in (image, label):
        if column not in features:
            raise ValueError(
                f"dataset: expected a column {column!r}, got the columns {', '.join(features)}. Name one of them."
            )
    classes = names if names is not None else getattr(features[label], "names", None)
    if classes is None:
        raise ValueError(
            f"names: expected a column {label!r} that names its classes, got no names. Pass names=[...] in label order."
        )
    labels = {part: [int(value) for value in one[label]] for part, one in splits.items()}
    openers = {part: partial(partial, open_column_image, one, image) for part, one in splits.items()}
    return _build_raw_dataset(name, _build_names(name, classes, template), labels, openers)


def _build_names(name: str, classes: Sequence[str], template: str) -> Names:
    if "{name}" not in template:
        raise ValueError(
            f"template: expected a text with {{name}} where the class stands, got {template!r}, which has no {{name}}"
        )
    return build_class_names({str(i): text for i, text in enumerate(classes)}, name, template)


def _build_data(raw: RawDataset, template: str, augment: str) -> Data:
    if augment not in AUGMENTATIONS:
        raise ValueError(f"augment: there is no augmentation {augment!r}; the choices are {', '.join(AUGMENTATIONS)}")
    return build_dataset(replace(raw, template=template, augment=augment, hint=OBJECTS_HINT))


def _build_raw_dataset(
    name: str, names: Names, labels: dict[str, list[int]], openers: dict[str, Callable[[int], ImageOpener]]
) -> RawDataset:
    """Build records of labels by split; `openers` return what opens the image at an index."""
    for part, part_labels in labels.items():
        if unnamed := [label for label in part_labels if not 0 <= label < len(names)]:
            raise ValueError(
                f"{name}: expected labels below {len(names)}, the number of class names, got {unnamed[0]} in {part}. "
                "Name all classes."
            )
    keys = class_ids(names)
    records = {
        part: [ImageRecord(f"{part}/{i}", keys[label]) for i, label in enumerate(part_labels)]
        for part, part_labels in labels.items()
    }
    if "test" in records and "train" in records:
        records, note = add_validation_split(records)
    elif set(records) == {"train"}:
        records, note = split_per_class(records["train"]), "each class cut 50:20:30 into train, val and test"
    else:
        raise ValueError(
            f"{name}: expected train and test, or one dataset that is split, got {', '.join(records)}. Pass train, too."
        )
    build_item = partial(_build_object_item, f"{name}|{os.getpid()}|{next(OBJECT_COUNTER)}", openers)
    return RawDataset(names, records, build_item, note, name=name)


def _build_object_item(key: str, openers: dict[str, Callable[[int], ImageOpener]], path: str) -> ImageItem:
    part, _, index = path.partition("/")
    opener = openers[part](int(index))
    return build_image_item(f"{key}|{path}", opener, path, find_content(opener))


def find_content(opener: ImageOpener) -> Callable[[], str] | None:
    """Return what hashes an image that is in memory; None for one that its dataset would have to decode."""
    image = opener.args[0] if isinstance(opener, partial) else None
    return partial(hash_array, image) if isinstance(image, np.ndarray) else None


def read_labels(dataset: Any) -> list[int]:
    """Return the labels of all items, from the list that most datasets have; otherwise each item is loaded."""
    for attribute in ("targets", "_labels", "labels"):
        labels = getattr(dataset, attribute, None)
        if labels is not None and len(labels) == len(dataset):
            return [int(label) for label in labels]
    return [int(dataset[i][1]) for i in range(len(dataset))]


def make_opener(dataset: Any, index: int) -> ImageOpener:
    """Return what opens one image: a copy of it where all are in memory as they are, otherwise the dataset."""
    is_in_memory = getattr(getattr(dataset, "data", None), "shape", ())[:1] == (len(dataset),)
    if is_in_memory and getattr(dataset, "transforms", None) is None:
        return partial(_to_rgb_image, np.array(dataset[index][0]), f"{type(dataset).__name__}[{index}]")
    return partial(_open_dataset_image, dataset, index)


def _open_dataset_image(dataset: Any, index: int) -> Image.Image:
    return _to_rgb_image(dataset[index][0], f"{type(dataset).__name__}[{index}]")


def open_column_image(dataset: Any, column: str, index: int) -> Image.Image:
    return _to_rgb_image(dataset[index][column], f"{column} {index}")


def _to_rgb_image(image: Any, where: str) -> Image.Image:
    """Convert a PIL image, uint8 array (H, W[, 3]) or tensor (3 or 1, H, W) of 0..1 or uint8 to RGB."""
    if isinstance(image, Image.Image):
        return convert_to_rgb(image)
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = array.transpose(1, 2, 0)  # tensors have the channels first
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(
            f"{where}: expected an image, got {array.dtype} {array.shape}. Make the dataset without a transform."
        )
    return convert_to_rgb(Image.fromarray(array.squeeze(-1) if array.ndim == 3 and array.shape[-1] == 1 else array))
