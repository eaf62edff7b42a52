"""Labels and class names as users of scikit-learn have them, converted to indices and `ClassName`s."""

from collections.abc import Iterable, Mapping, Sequence, Set
from math import isnan
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
        ValueError: for another number of labels, missing ones, continuous numbers, and labels of several kinds.
    """
    if labels is None:
        raise ValueError(
            f"labels: expected a label for each of the {what}, got None ({owner} requires y to be passed, but the "
            "target y is None). Pass labels."
        )
    _require_one_label(labels, what)
    array = _convert_labels(labels)
    if array.ndim != 1 and not (array.ndim == 2 and array.shape[1] == 1):
        raise ValueError(
            f"labels: expected one for each of the {what}, got an array of the shape {array.shape}. Pass a list or an "
            "array (N,)."
        )
    array = _convert_objects(column_or_1d(array, warn=True))
    if len(array) != n_items:
        raise ValueError(f"labels: expected one for each of the {n_items} {what}, got {len(array)}. Pass as many.")
    _require_classes(array)
    return array


def _require_one_label(labels: Any, what: str) -> None:
    """Raise ValueError for several labels an item: a matrix, or a list of lists, tuples or sets."""
    shape = tuple(labels.shape) if hasattr(labels, "__array__") else ()
    if len(shape) == 2 and shape[1] > 1:
        got = f"an array of the shape {shape}"
    elif isinstance(labels, list | tuple) and any(isinstance(label, list | tuple | Set) for label in labels):
        got = "several labels for some"
    else:
        return
    several = (
        "To learn several labels an image, write a table of paths and labels, train by `vlprompt run METHOD TABLE "
        "--task multi_label`, and load its folder by PromptClassifier.load(FOLDER)."
    )
    remedy = several if what == "images" else "Pass a list or an array (N,)."
    raise ValueError(f"labels: expected one for each of the {what}, got {got}. {remedy}")


def read_label_matrix(labels: Any, predicted: np.ndarray) -> np.ndarray:
    """Return several labels (N, C) of 0 and 1, of the shape of the predicted ones; ValueError for others."""
    array = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    if array.shape != predicted.shape or not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"labels: expected an array {predicted.shape} of 0 and 1, a column for each class, got one of the shape "
            f"{array.shape} with {array.flat[0] if array.size else 'nothing'!r}. Pass 1 for each that is there."
        )
    return array.astype(np.int64)


def _convert_labels(labels: Any) -> np.ndarray:
    """Return labels as an array, those of a list as objects; ValueError for what has no order of labels."""
    labels = labels.detach().cpu() if hasattr(labels, "detach") else labels
    if hasattr(labels, "__array__"):
        return np.asarray(labels)
    is_sparse = hasattr(labels, "toarray")
    if isinstance(labels, str | bytes | Mapping | Set) or is_sparse or not isinstance(labels, Iterable):
        raise ValueError(
            f"labels: expected a list or an array of labels, got a {type(labels).__name__}. Convert it to one."
        )
    values = [value.item() if hasattr(value, "item") else value for value in labels]
    if all(isinstance(value, str) for value in values):
        return np.asarray(values)
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _convert_objects(labels: np.ndarray) -> np.ndarray:
    """Convert objects to numbers or truth values, unless they are strings; ValueError for missing and mixed labels."""
    if labels.dtype.kind not in "Of":
        return labels
    values = labels.tolist()
    if missing := [value for value in values if is_missing(value)]:
        raise ValueError(
            f"labels: expected a label for each item, got {missing[0]} in {len(missing)} of {len(values)} (Input y "
            "contains NaN). Leave out such items."
        )
    if labels.dtype.kind == "f":
        return labels
    kinds = list(dict.fromkeys(map(_name_kind, values)))
    if len(kinds) > 1:
        raise ValueError(f"labels: expected labels of one kind, got {kinds[0]} and {kinds[1]}. Convert all to strings.")
    return labels if kinds == ["strings"] else np.asarray(values)


def is_missing(value: object) -> bool:
    """Return whether a value stands for none: None, NaN, or those of pandas."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and isnan(value))


def _name_kind(value: object) -> str:
    """Return the kind of a label, as errors call it."""
    if isinstance(value, bool | np.bool_):
        return "truth values"
    if isinstance(value, int | float | np.number):
        return "numbers"
    return "strings" if isinstance(value, str) else f"objects of {type(value).__name__}"


def _require_classes(labels: np.ndarray) -> None:
    """Raise ValueError for labels that are no classes: not finite, continuous, or of a kind without classes."""
    try:
        if labels.dtype.kind == "f":
            assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"labels: expected integers, strings or truth values, got an array of {labels.dtype} "
            f"({str(error).split('. ')[0].rstrip('.')}). Convert them to classes."
        ) from error


def require_same_kind(labels: np.ndarray, classes: np.ndarray, where: str) -> None:
    """Raise ValueError for labels of another kind than the classes: strings, numbers or truth values."""
    if _read_kind(labels) != _read_kind(classes):
        raise ValueError(
            f"labels: expected labels as in {where}, such as {classes.tolist()[0]!r}, got {labels.tolist()[0]!r}. "
            "Convert them to the same kind."
        )


def _read_kind(labels: np.ndarray) -> str:
    kind = labels.dtype.kind
    return "strings" if kind in "OU" else "truth values" if kind == "b" else "dates" if kind in "mM" else "numbers"


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
        texts = _list_names(class_names, classes)
    if wrong := [text for text in texts if is_missing(text) or not isinstance(text, str | bytes | int | float)]:
        raise ValueError(f"class_names: expected texts, got {wrong[0]!r}. Name each class as prompts should show it.")
    if all(isinstance(text, ClassName) for text in texts):
        return tuple(text for text in texts if isinstance(text, ClassName))
    named = {str(label): text for label, text in zip(classes, texts, strict=True)}
    return build_class_names(named, "class_names", template)


def _list_names(class_names: Any, classes: np.ndarray) -> list[str]:
    """Return names in the order of the classes; ValueError for another number, and for what has no order."""
    if isinstance(class_names, str | bytes | Set) or not isinstance(class_names, Iterable):
        raise ValueError(
            f"class_names: expected a list of names or a mapping {{label: name}}, got a {type(class_names).__name__}. "
            "Pass one of these."
        )
    texts = [name.item() if isinstance(name, np.generic) else name for name in class_names]
    if len(texts) != len(classes):
        raise ValueError(
            f"class_names: expected {len(classes)}, one for each class in the order {_shorten(classes)}, got "
            f"{len(texts)}. Pass as many, or a mapping {{label: name}}."
        )
    return texts


def merge_classes(
    data: LabelledData, classes: np.ndarray, names: Sequence[ClassName]
) -> tuple[np.ndarray, tuple[ClassName, ...]]:
    """Return the classes of a lesson and of those before, sorted, with their names; earlier names stay.

    Raises:
        ValueError: for labels of another kind than before.
    """
    require_same_kind(data.classes, classes, "the lessons before")
    name_by_label = dict(zip(data.classes.tolist(), data.names, strict=True))
    name_by_label |= dict(zip(classes.tolist(), names, strict=True))
    merged = np.unique(np.concatenate([classes, data.classes]))
    return merged, tuple(name_by_label[label] for label in merged.tolist())


def _shorten(classes: np.ndarray) -> str:
    return ", ".join(map(str, classes[:5])) + " ..." * (len(classes) > 5)
