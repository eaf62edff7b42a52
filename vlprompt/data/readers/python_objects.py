"""Datasets that are Python objects: torchvision's and Hugging Face's, and anything that is used like them."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from vlprompt.core.class_names import PLAIN, Names, ids
from vlprompt.core.images import Item
from vlprompt.data.dataset import Data, Found, Row, class_names, made
from vlprompt.data.images.decoding import AUGMENTS, in_rgb, picture_item
from vlprompt.data.splits.sampling import PARTS, cut, with_val

NUMBERS = itertools.count()  # two objects may look alike, so their pictures get keys of their own


def from_torchvision(
    train: Any,
    test: Any = None,
    val: Any = None,
    *,
    names: Sequence[str] | None = None,
    name: str | None = None,
    template: str = PLAIN,
    augment: str = "crop-flip",
) -> Data:
    """Data of datasets that give (picture, label) by number, such as torchvision's, made without a transform.

    Each image holds a copy of its own pixels where the dataset has them all in memory (CIFAR, MNIST, SVHN); otherwise
    it holds the dataset, and who digs in it finds every label. Alone, `train` is cut 50 : 20 : 30 class by class; with
    a `test`, a fifth of it becomes val unless there is one. names: the classes in label order; default: the dataset's
    `classes`. template: a text with {name} in it. ValueError for labels without a name and for pictures that can't be
    shown as pictures any more.
    """
    given = {part: one for part, one in (("train", train), ("val", val), ("test", test)) if one is not None}
    classes = names if names is not None else getattr(train, "classes", None)
    if classes is None:
        raise ValueError(f"{type(train).__name__} has no `classes`; say names=[...] in label order")
    name = name or type(train).__name__.lower()
    return _data(name, classes, template, augment, lambda names: read_pictures(given, names, name))


def read_pictures(given: Mapping[str, Any], names: Names, name: str) -> Found:
    """Rows and items of such datasets by part; ValueError for labels without a name."""
    labels = {part: _labels(one) for part, one in given.items()}
    return _found(name, names, labels, {part: partial(_opener, one) for part, one in given.items()})


def from_huggingface(
    dataset: Any,
    image: str = "image",
    label: str = "label",
    *,
    names: Sequence[str] | None = None,
    name: str = "huggingface",
    template: str = PLAIN,
    augment: str = "crop-flip",
) -> Data:
    """Data of a Hugging Face dataset with a column of images and one of labels, or of a dictionary of its splits.

    Each image holds the dataset, so who digs in it finds every label. One dataset is cut 50 : 20 : 30 class by class.
    names: the classes in label order; default: those of the label's feature. ValueError for a column that is not there
    and for labels without names.
    """
    given: dict[str, Any] = {}
    if isinstance(dataset, Mapping):
        for part, one in dataset.items():
            if str(part) not in PARTS:
                raise ValueError(f"the split {part!r} is not train, validation or test; give only those")
            given[PARTS[str(part)]] = one
    else:
        given["train"] = dataset
    first = next(iter(given.values()))
    for column in (image, label):
        if column not in first.features:
            raise ValueError(f"there is no column {column!r}; the columns are {', '.join(first.features)}")
    classes = names if names is not None else getattr(first.features[label], "names", None)
    if classes is None:
        raise ValueError(f"the column {label!r} does not name its classes; say names=[...] in label order")
    labels = {part: [int(value) for value in one[label]] for part, one in given.items()}
    openers = {part: partial(partial, _column_of, one, image) for part, one in given.items()}
    return _data(name, classes, template, augment, lambda names: _found(name, names, labels, openers))


def _data(name: str, classes: Sequence[str], template: str, augment: str, read: Callable[[Names], Found]) -> Data:
    if augment not in AUGMENTS:
        raise ValueError(f"there is no augmentation {augment!r}; the choices are {', '.join(AUGMENTS)}")
    if "{name}" not in template:
        raise ValueError(f"the template {template!r} has no {{name}} where the class stands")
    names = class_names({str(i): text for i, text in enumerate(classes)}, name, template)
    return made(name, read(names), template, augment, name, "a class needs at least 3 images")


def _found(name: str, names: Names, labels: dict[str, list[int]], openers: dict[str, Any]) -> Found:
    for part, numbers in labels.items():
        if strange := [number for number in numbers if not 0 <= number < len(names)]:
            raise ValueError(f"{name}: the label {strange[0]} in {part} has no class name; there are {len(names)}")
    keys = ids(names)
    rows = {part: [Row(f"{part}/{i}", keys[n]) for i, n in enumerate(numbers)] for part, numbers in labels.items()}
    if "test" in rows and "train" in rows:
        parts, note = with_val(rows)
    elif set(rows) == {"train"}:
        parts, note = cut(rows["train"]), "each class cut 50:20:30 into train, val and test"
    else:
        raise ValueError(f"{name} has {', '.join(rows)}; give train and test, or one dataset that is cut")
    return Found(names, parts, partial(_item, f"{name}|{os.getpid()}|{next(NUMBERS)}", openers), note)


def _item(key: str, openers: dict[str, Any], path: str) -> Item:
    part, _, place = path.partition("/")
    return picture_item(f"{key}|{path}", openers[part](int(place)), path)


def _labels(dataset: Any) -> list[int]:
    """Of all items, from the list that most datasets keep; otherwise each item is looked at."""
    for kept in ("targets", "_labels", "labels"):
        found = getattr(dataset, kept, None)
        if found is not None and len(found) == len(dataset):
            return [int(label) for label in found]
    return [int(dataset[i][1]) for i in range(len(dataset))]


def _opener(dataset: Any, place: int) -> Callable[[], Image.Image]:
    """What opens one picture: a copy of it where all are in memory as they are shown, otherwise the dataset."""
    held = getattr(getattr(dataset, "data", None), "shape", ())[:1] == (len(dataset),)
    if held and getattr(dataset, "transforms", None) is None:
        return partial(_shown, np.array(dataset[place][0]), f"{type(dataset).__name__}[{place}]")
    return partial(_picture_of, dataset, place)


def _picture_of(dataset: Any, place: int) -> Image.Image:
    return _shown(dataset[place][0], f"{type(dataset).__name__}[{place}]")


def _column_of(dataset: Any, column: str, place: int) -> Image.Image:
    return _shown(dataset[place][column], f"{column} {place}")


def _shown(picture: Any, where: str) -> Image.Image:
    """A PIL picture, uint8 array (H, W[, 3]) or tensor (3 or 1, H, W) of 0..1 or uint8, as a picture in RGB."""
    if isinstance(picture, Image.Image):
        return in_rgb(picture)
    array = np.asarray(picture)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = array.transpose(1, 2, 0)  # tensors have the channels first
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"{where} is no picture but {array.dtype} {array.shape}; make the dataset without a transform")
    return in_rgb(Image.fromarray(array.squeeze(-1) if array.ndim == 3 and array.shape[-1] == 1 else array))
