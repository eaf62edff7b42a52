"""Estimators as model folders: what scikit-learn needs stands in a file beside the prompt's."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vlprompt.core.class_names import ClassName, Names, class_ids
from vlprompt.data.validation import Schema, validate
from vlprompt.experiments.estimator.labels import read_labels
from vlprompt.experiments.estimator.settings import TASK_SETTINGS, to_python
from vlprompt.experiments.learned.model_files import write_model_files
from vlprompt.experiments.learned.model_folder import build_model_files
from vlprompt.experiments.learned.state import LearnedState, read_learned_state

ESTIMATOR_FILE = "estimator.json"


class EstimatorFile(Schema):
    """The content of estimator.json.

    Args:
        estimator: the name of its class.
        parameters: of its constructor, but for the backbone, which config.json has, and the device.
        labels: sorted; a label may be another value than the name of its class.
        class_ids: the id of each label's class in the prompt.
        float_range: black and white in arrays that are not bytes, as recognised in training.
        n_features: numbers per image, of arrays.
    """

    estimator: str
    parameters: dict[str, Any]
    labels: list[bool | int | float | str]
    class_ids: list[str]
    float_range: tuple[float, float] | None = None
    n_features: int | None = None


def write_estimator(
    folder: Path, state: LearnedState, content: EstimatorFile, license: str | None, force: bool
) -> None:
    """Write a model folder with estimator.json; it appears complete or not at all. Errors as in `save_prompt`."""
    files = build_model_files(state, folder.absolute().name, license=license)
    text = json.dumps(content.model_dump(), indent=1, ensure_ascii=False) + "\n"
    write_model_files(folder, {ESTIMATOR_FILE: text.encode(), **files}, force=force)


def read_estimator(source: str | Path, backbone: str | None) -> tuple[LearnedState, EstimatorFile]:
    """Read a learned state with what scikit-learn needs, which is derived where the folder has no estimator.json.

    Args:
        source: a model folder, a run's folder, or OWNER/NAME on the hub.
        backbone: where the backbone is now; default where it was.

    Raises:
        ValueError: for a folder that is no such one, or a broken file.
    """
    state = read_learned_state(source)
    path = Path(source).expanduser() / ESTIMATOR_FILE
    if path.exists():
        content = _read_file(path)
        _require_labels(content, state.names, path)
    else:
        content = _derive_content(state)
    if backbone is not None:
        metadata = {**state.metadata, "config": {**state.config, "backbone": backbone}}
        state = replace(state, metadata=metadata, is_backbone_local=False)
    return state, content


def _read_file(path: Path) -> EstimatorFile:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r}: expected the labels of an estimator, got a broken file ({error}). Save it again."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{str(path)!r}: expected an object of JSON, got a {type(values).__name__}. Save the estimator again."
        )
    return validate(EstimatorFile, values, str(path))


def _require_labels(content: EstimatorFile, names: Names, path: Path) -> None:
    """Raise ValueError unless the file has one label for each class of the prompt, sorted."""
    try:
        labels = read_labels(content.estimator, content.labels, len(content.class_ids), "class ids")
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    if sorted(content.class_ids) != sorted(class_ids(names)) or not np.array_equal(np.unique(labels), labels):
        raise ValueError(
            f"{str(path)!r}: expected a label for each of the {len(names)} classes of the prompt, sorted, got others. "
            "Save the estimator again."
        )


def _derive_content(state: LearnedState) -> EstimatorFile:
    """Describe the prompt of a run: its labels are the names of its classes, or their ids where two share a name."""
    names, config = state.names, state.config
    ids = class_ids(names)
    labels = list(map(str, names)) if len(set(map(str, names))) == len(names) else list(ids)
    order = sorted(range(len(names)), key=labels.__getitem__)
    return EstimatorFile(
        estimator="PromptTextClassifier" if state.text_protocol else "PromptClassifier",
        parameters={
            "method": config["method"]["name"],
            "seed": config["seed"],
            **dict(_iter_settings(config)),
        },
        labels=[labels[k] for k in order],
        class_ids=[ids[k] for k in order],
    )


def _iter_settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    task = TASK_SETTINGS.get(config["task"]["name"], ())
    for section, names in (("method", config["method"]), ("train", config["train"]), ("task", task)):
        yield from ((f"{section}__{name}", config[section][name]) for name in names if name != "name")
    if "preprocess" in config:
        yield "preprocess", config["preprocess"]


def describe_estimator(estimator: str, parameters: Mapping[str, Any], fitted: Mapping[str, Any]) -> EstimatorFile:
    """Describe a fitted estimator.

    Args:
        estimator: the name of its class.
        parameters: of its constructor.
        fitted: its attributes.

    Raises:
        ValueError: for labels that JSON can't hold.
    """
    labels = fitted["classes_"].tolist()
    if wrong := [label for label in labels if not isinstance(label, bool | int | float | str)]:
        raise ValueError(
            f"save: expected labels that are numbers or strings, got a {type(wrong[0]).__name__}. Fit on such."
        )
    float_range = fitted.get("float_range_")
    return EstimatorFile(
        estimator=estimator,
        parameters={name: to_python(value) for name, value in parameters.items() if name not in ("backbone", "device")},
        labels=labels,
        class_ids=list(class_ids(fitted["class_names_"])),
        float_range=float_range,
        n_features=fitted.get("n_features_in_"),
    )


def restore_attributes(state: LearnedState, content: EstimatorFile) -> dict[str, Any]:
    """Return the attributes of the fitted estimator."""
    by_id: dict[str, ClassName] = {name.id: name for name in state.names if isinstance(name, ClassName)}
    attributes = {
        "learned_state_": state,
        "classes_": np.array(content.labels),
        "class_names_": tuple(by_id[class_id] for class_id in content.class_ids),
        "float_range_": content.float_range,
        "n_features_in_": content.n_features,
    }
    return {name: value for name, value in attributes.items() if value is not None}
