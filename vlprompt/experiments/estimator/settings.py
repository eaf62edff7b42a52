"""The settings of an estimator: SECTION__NAME keywords, resolved by the recipes and checks of `vlprompt run`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlprompt.config.build import is_adaptation_method
from vlprompt.config.resolve import load_layered_config, resolve
from vlprompt.config.run_config import RunConfig
from vlprompt.config.sources import LayeredConfig, Settings, merge_settings, nest_setting, require_one_length
from vlprompt.runtime.paths import find_configs_folder

SECTIONS = ("method", "train", "task", "preprocess")
TASK_SETTINGS = {  # of each task those that data in Python have; the others choose files, or order a stream
    "few_shot": ("seed", "shots", "augment"),
    "continual": ("seed", "shots", "augment", "stages"),
    "text": ("seed", "shots", "prompt_template", "plain_template", "truncation_side"),
}
DATASET_PLACEHOLDER = "fit"  # until the data are known


def is_setting(key: str) -> bool:
    """Return whether a keyword is one of SECTION__NAME, or the preprocessing by its name."""
    section, separator, name = key.partition("__")
    return key == "preprocess" or (section in SECTIONS and bool(separator and name) and not key.endswith("_"))


def require_setting(key: str) -> None:
    """Raise ValueError for a keyword in no section."""
    if not is_setting(key):
        name = key.strip("_").rpartition("__")[2]
        remedy = (
            "Set seed instead" if key == "random_state" else f"Write for example train__{name}=... or method__{name}=.."
        )
        raise ValueError(
            f"{key}: expected a setting as SECTION__NAME with the section {', '.join(SECTIONS)}, got {key!r}. {remedy}."
        )


def nest_settings(settings: Mapping[str, Any]) -> Settings:
    """{"train__lr": x} -> {"train": {"lr": x}}; ValueError for a keyword in no section."""
    nested: Settings = {}
    for key, value in settings.items():
        require_setting(key)
        nested = merge_settings(nested, nest_setting(key.replace("__", "."), to_python(value)))
    return nested


def to_python(value: Any) -> Any:
    """Convert numbers and arrays of NumPy, which searches over parameters give, to Python's own."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return [to_python(part) for part in value] if isinstance(value, list | tuple) else value


def resolve_settings(
    owner: str, task: str, method: str, backbone: str, seed: int, settings: Mapping[str, Any], shots: int
) -> RunConfig:
    """Resolve the configuration of a training, with the recipes that `vlprompt run` takes.

    Args:
        owner: the estimator, for errors.
        task: the task whose recipes apply.
        method: its name, or module:Class.
        backbone: what `load` takes.
        seed: of initial values, order and augmentations.
        settings: keywords SECTION__NAME.
        shots: items of the largest class, by which a recipe may choose the epochs.

    Raises:
        ValueError: for an unknown name, a value of the wrong type, and a setting that data in Python don't have.
    """
    _require_texts(owner, method=method, backbone=backbone)
    nested = nest_settings(settings)
    if is_adaptation_method(method):
        raise ValueError(
            f"method: expected one that learns from labelled items alone, got {method!r}, which needs unlabelled "
            "images of another domain. Use `vlprompt run --task domain`."
        )
    for name in nested.get("task", {}):
        if name not in TASK_SETTINGS[task]:
            raise ValueError(
                f"{owner}: task__{name}: expected one of {', '.join(TASK_SETTINGS[task])} for data in Python, got "
                f"{name!r}. Leave it out."
            )
    config = load_layered_config(method, task=task, dataset=DATASET_PLACEHOLDER, backbone=backbone)
    require_one_length([nested])
    config.add_layer({"task": {"shots": None}}, owner)  # whoever passes items means all of them
    config.add_layer({**nested, "seed": to_python(seed)}, owner)
    _choose_by_shots(config, shots)
    return resolve(config)


def learns_streams(method: str) -> bool:
    """Return whether a method is one for streams: there is a recipe of it, or it is a class outside this package."""
    return ":" in method or any((find_configs_folder() / "continual").rglob(f"{method}.yaml"))


def require_same_stream(config: RunConfig, earlier: Mapping[str, Any]) -> None:
    """Raise ValueError where a lesson has another backbone, method or number of lessons than those before."""
    differing = [
        name
        for name, now, before in (
            ("backbone", config.backbone, earlier["backbone"]),
            ("method", config.method, earlier["method"]),
            ("task__stages", config.task["stages"], earlier["task"].get("stages")),
            ("fit", config.task["name"], earlier["task"]["name"]),
        )
        if now != before
    ]
    if "fit" in differing:
        raise ValueError(
            "partial_fit: expected lessons from the first on, got an estimator that fit has trained. Begin with a new "
            "one: sklearn.base.clone(estimator)."
        )
    if differing:
        raise ValueError(
            f"partial_fit: expected the settings of the lessons before, got another {differing[0]}. Begin with a new "
            "estimator: sklearn.base.clone(estimator)."
        )


def _require_texts(owner: str, **values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{owner}: {name}: expected a name, got {value!r}. List them by `vlprompt list {name}s`.")


def _choose_by_shots(config: LayeredConfig, shots: int) -> None:
    """Take a training length that a recipe lists by shots from the nearest number that is not above these."""
    if config.values["task"].get("shots") is not None:
        return
    for key in ("epochs", "iterations"):
        by_shots = config.values.get("train", {}).get(key)
        if isinstance(by_shots, dict) and all(isinstance(number, int) for number in by_shots):
            nearest = max((number for number in by_shots if number <= shots), default=min(by_shots))
            config.add_layer({"train": {key: by_shots[nearest]}}, config.find_origin(f"train.{key}"))
