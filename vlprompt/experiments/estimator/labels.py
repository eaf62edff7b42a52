"""Labels and class names as users of scikit-learn have them, converted to indices and `ClassName`s."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, column_or_1d

from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.data.dataset import build_class_names

ClassNames = Sequence[str] | Mapping[Any, str] | None


class LabelledData(NamedTuple):
    """Items with labels, the classes (C,) that the labels are of, sorted, and the name of each."""

    train: Split
    classes: np.ndarray
    names: tuple[ClassName, ...]


def read_labels(owner: str, labels: Any, n_items: int, what: str) -> np.ndarray:
    """Return labels (N,) of any one kind: numbers, strings or truth values.

    Args:
        owner: the estimator, for errors.
        labels: one for each item.
        n_items: their number.
        what: what the items are, "images" or "texts".

    Raises:
        ValueError: for another number of labels, NaN, continuous numbers, and labels of several kinds.
    """
    if labels is None:
        raise ValueError(
            f"labels: expected a label for each of the {what}, got None ({owner} requires y to be passed, but the "
            "target y is None). Pass labels."
        )
    if isinstance(labels, list | tuple) and len({isinstance(label, str) for label in labels}) > 1:
        raise ValueError("labels: expected labels of one kind, got strings and others. Convert all to strings.")
    array = column_or_1d(np.asarray(labels), warn=True)
    if array.dtype.kind == "f" or array.dtype == object:
        assert_all_finite(array, input_name="y")
    if len(array) != n_items:
        raise ValueError(f"labels: expected one for each of the {n_items} {what}, got {len(array)}. Pass as many.")
    check_classification_targets(array)
    return array


def encode_labels(labels: np.ndarray, min_classes: int) -> tuple[np.ndarray, list[int]]:
    """Return the classes, sorted, and the index of each label in them; ValueError for too few classes."""
    classes, indices = np.unique(labels, return_inverse=True)
    if len(classes) < min_classes:
        raise ValueError(
            f"labels: expected at least 2 classes, got one class only ({classes[0]!s}). Add items of another class."
        )
    return classes, indices.tolist()


def find_class_indices(labels: np.ndarray, classes: np.ndarray) -> list[int]:
    """Return the index of each label in sorted classes; ValueError for a label that is none of them."""
    if unknown := sorted(set(labels.tolist()) - set(classes.tolist()), key=str):
        raise ValueError(
            f"validation: expected labels of the classes in training, got {unknown[0]!r}. Leave out such items."
        )
    return np.searchsorted(classes, labels).tolist()


def name_classes(classes: np.ndarray, class_names: ClassNames, template: str) -> tuple[ClassName, ...]:
    """Return the names of sorted classes, as prompts show them; the id of each is its label.

    Args:
        classes: (C,), sorted.
        class_names: a name for each class: a mapping of labels, or in the order of the classes; default: the labels.
        template: of the class texts.

    Raises:
        ValueError: for a class without a name, or another number of names.
    """
    if class_names is None:
        texts = [str(label) for label in classes]
    elif isinstance(class_names, Mapping):
        if missing := [label for label in classes.tolist() if label not in class_names]:
            raise ValueError(
                f"class_names: expected a name for each label, got none for {missing[0]!r}. Add it to the mapping."
            )
        texts = [class_names[label] for label in classes.tolist()]
    else:
        texts = list(class_names)
        if isinstance(class_names, str) or len(texts) != len(classes):
            raise ValueError(
                f"class_names: expected {len(classes)}, one for each class in the order {_shorten(classes)}, got "
                f"{len(texts)}. Pass as many, or a mapping {{label: name}}."
            )
    if all(isinstance(text, ClassName) for text in texts):
        return tuple(text for text in texts if isinstance(text, ClassName))
    named = {str(label): text for label, text in zip(classes, texts, strict=True)}
    return build_class_names(named, "class_names", template)


def merge_classes(
    data: LabelledData, classes: np.ndarray, names: Sequence[ClassName]
) -> tuple[np.ndarray, tuple[ClassName, ...]]:
    """Return the classes of a lesson and of those before, sorted, with their names; earlier names stay.

    Raises:
        ValueError: for labels of another kind than before.
    """
    if (data.classes.dtype.kind in "US") != (classes.dtype.kind in "US"):
        raise ValueError(
            f"labels: expected labels as in the lessons before, such as {classes.tolist()[0]!r}, got "
            f"{data.classes.tolist()[0]!r}. "
            "Convert them to the same kind."
        )
    name_by_label = dict(zip(data.classes.tolist(), data.names, strict=True))
    name_by_label |= dict(zip(classes.tolist(), names, strict=True))
    merged = np.unique(np.concatenate([classes, data.classes]))
    return merged, tuple(name_by_label[label] for label in merged.tolist())


def _shorten(classes: np.ndarray) -> str:
    return ", ".join(map(str, classes[:5])) + " ..." * (len(classes) > 5)
