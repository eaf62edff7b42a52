"""Resolve layered settings to the configurations of runs, checked against the constructors and complete."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack, get_args

from vlprompt import tasks
from vlprompt.backbones.schemes import split_half_features
from vlprompt.config.build import (
    Annotation,
    get_backbone_kind,
    get_constructor_types,
    get_nested_kind,
    is_adaptation_method,
    resolve_class,
)
from vlprompt.config.override_types import apply_argument_types
from vlprompt.config.run_config import Arguments, RunConfig
from vlprompt.config.sources import COMMAND_LINE, LayeredConfig, Override, PlainValue, Settings, read_yaml
from vlprompt.core.towers import WEIGHT_PRECISIONS
from vlprompt.runtime.errors import suggest_nearest
from vlprompt.runtime.paths import find_configs_folder

if TYPE_CHECKING:
    from pydantic import BaseModel

FieldDefinition: TypeAlias = tuple[Annotation, PlainValue]  # type and default of a field of a pydantic model


class LayerOptions(TypedDict, total=False):
    """Options of `load_layered_config`."""

    dataset: str | None
    task: str | None
    backbone: str | None
    config_file: Path | None
    overrides: Sequence[Override]
    origin: str


TRAINS_AS = {
    "online": "few_shot",
    "open_set": "few_shot",
}  # a task that differs from another in its tests alone -> the other


def find_recipes(task: str, method: str, backbone: str) -> list[Path]:
    """Return the recipes that apply, in the order in which later ones win.

    They are configs/<task>/<method>.yaml, the paper's values; <task>/<backbone>.yaml; <task>/<backbone>/<method>.yaml;
    for a task that trains as another one does, before them those of the other.
    """
    kind = split_half_features(backbone.partition(":")[0].removesuffix("/random"))[0]
    kind = "hf" if kind in WEIGHT_PRECISIONS else kind
    names = f"{method}.yaml", f"{kind}.yaml", f"{kind}/{method}.yaml"
    folders = [find_configs_folder() / name for name in (TRAINS_AS.get(task), task) if name]
    return [folder / name for folder in folders for name in names if (folder / name).is_file()]


def complete_arguments(kind: str, cls: type, values: Settings, config: LayeredConfig) -> Arguments:
    """Check the settings of a class against its annotations and fill in defaults.

    Args:
        kind: where they stand, such as "method" or "method.head".
        cls: the class; the arguments that take its frozen backbone are left out.
        values: settings; a "name" is ignored.
        config: where the settings come from, for error messages.

    Raises:
        ValueError: for an unknown key, a value of the wrong type or a missing one; it names origin and key.
    """
    from vlprompt.config.describe import to_plain_value

    types, fields, model_type = _build_model(cls)
    parts = {name: part for name, annotation in types.items() if (part := get_nested_kind(annotation)) is not None}
    values = {
        key: {"name": value} if key in parts and isinstance(value, str) else value
        for key, value in values.items()
        if key != "name"
    }
    for name in values:
        if name not in fields:
            hint = _suggest_setting(kind, str(name), list(fields))
            raise ValueError(f"{config.find_origin(f'{kind}.{name}')}: unknown key '{kind}.{name}'; {hint}")
    arguments = _validate_values(kind, model_type, values, config)
    for name, part in parts.items():
        if isinstance(arguments.get(name), dict):
            arguments[name] = _complete_part(f"{kind}.{name}", part, arguments[name], config)
    return {name: to_plain_value(value) for name, value in arguments.items()}


def _suggest_setting(kind: str, name: str, fields: Sequence[str]) -> str:
    """Return which tasks have a setting that this one lacks; else the nearest of its settings."""
    is_task = kind == "task" and name != "name"
    owners = [task for task in tasks.find_classes() if name in _get_parameters(task)] if is_task else []
    if not owners:
        return suggest_nearest(name, fields)
    task = f"task {owners[0]}. Set --task {owners[0]}" if len(owners) == 1 else f"tasks {', '.join(owners)}. Set one"
    return f"it is a setting of the {task}, or leave it out."


def _get_parameters(task: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(resolve_class("task", task)).parameters


def _build_fields(cls: type, types: dict[str, Annotation]) -> dict[str, FieldDefinition]:
    """Return name -> (type, default) for a pydantic model; `...` marks a required one."""
    fields: dict[str, FieldDefinition] = {}
    for name, annotation in types.items():
        if get_backbone_kind(name, annotation):
            continue
        part, default = get_nested_kind(annotation), inspect.signature(cls).parameters[name].default
        if default is inspect.Parameter.empty:
            default = {"head": {"name": "linear"}, "teacher": {}}.get(part or "", ...)  # a head is linear by default
        fields[name] = (Arguments if part else annotation, default)
    return fields


@lru_cache(maxsize=256)  # a sweep resolves the same few classes once for each of its runs
def _build_model(cls: type) -> tuple[dict[str, Annotation], dict[str, FieldDefinition], type["BaseModel"]]:
    """Return the annotations of a constructor, its fields and the pydantic model that checks them."""
    from pydantic import ConfigDict, create_model

    types = get_constructor_types(cls)
    fields = _build_fields(cls, types)
    definitions: dict[str, Any] = fields  # no name of a field is one of create_model's other keywords
    rules = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    return types, fields, create_model(cls.__name__, __config__=rules, **definitions)


def _validate_values(kind: str, model_type: type["BaseModel"], values: Settings, config: LayeredConfig) -> Arguments:
    from pydantic import ValidationError

    try:
        model = model_type(**values)
    except ValidationError as error:
        first = max(error.errors(), key=lambda one: len(one["loc"]))  # of a union the alternative that came furthest
        if first["type"] == "value_error":  # by a value that checks itself, and names its settings
            raise ValueError(f"{config.find_origin(kind)}: {first.get('ctx', {}).get('error')}") from error
        key = ".".join([kind, *(str(part) for part in first["loc"] if "[" not in str(part))])
        value = "nothing" if first["type"] == "missing" else repr(first["input"])
        needs_quotes = first["type"] == "string_type" and len(first["loc"]) > 1
        hint = """Write numbers that are names in quotes: 'task.order=["1","2"]'.""" if needs_quotes else ""
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise ValueError(
                f"{config.find_origin(key)}: unknown key {key!r}; {_suggest_field(model_type, first['loc'])}"
            ) from error
        expected = "a value" if first["type"] == "missing" else first["msg"].removeprefix("Input should be ")
        raise ValueError(
            f"{config.find_origin(key)}: {key}: expected {expected}, got {value}. {hint or f'Set {key} to one.'}"
        ) from error
    return {name: getattr(model, name) for name in model_type.model_fields}


def _suggest_field(model_type: type["BaseModel"], place: tuple[int | str, ...]) -> str:
    """Return the nearest field of the dataclass that is the value of a setting, or all that it has."""
    annotation = model_type.model_fields[str(place[0])].annotation
    fields = [
        f.name for kind in (annotation, *get_args(annotation)) if is_dataclass(kind) for f in dataclass_fields(kind)
    ]
    return suggest_nearest(str(place[-1]), fields)


def _complete_part(key: str, kind: str, values: Settings, config: LayeredConfig) -> Arguments:
    """Complete the settings of a method, head or teacher that is an argument of another method."""
    if kind == "teacher":
        return _complete_teacher(key, values, config)
    if not values.get("name"):
        raise ValueError(f"{config.find_origin(key)}: {key}: expected a name, got none. Set {key}={{name: coop}}.")
    cls = resolve_class(kind, values["name"])
    return {"name": values["name"], **complete_arguments(key, cls, values, config)}


def _complete_teacher(key: str, values: Settings, config: LayeredConfig) -> Arguments:
    from vlprompt.core.teacher import TeacherSettings

    if "name" in values:  # a bare text, as the name of a method would be
        values = {"run": values["name"]}
    arguments = complete_arguments(key, TeacherSettings, values, config)
    if not any(arguments.values()):
        raise ValueError(
            f"{config.find_origin(key)}: {key}: expected a backbone or a run, got neither. Set "
            f"{key}='{{backbone: open_clip:ViT-L-14/openai, run: FOLDER}}'."
        )
    return arguments


def resolve(config: LayeredConfig) -> RunConfig:
    """Check layered settings and complete them to the configuration of one run."""
    from vlprompt.config.describe import title

    values = config.values
    for section in ("method", "task"):
        if not values.get(section, {}).get("name"):
            raise ValueError(
                f"{section}: expected a name, got none. "
                f"Name it on the command line, or as '{section}: {{name: ...}}' in a file."
            )
    _require_plain_settings(config)
    seed = values.get("seed", 1)
    method, task = (resolve_class(section, values[section]["name"]) for section in ("method", "task"))
    if getattr(task, "has_several_labels", False):
        _require_several_labels(method, values["method"])
    task_arguments = complete_arguments("task", task, {"seed": seed} | values["task"], config)
    run_config = RunConfig(
        backbone=values.get("backbone", "glyph"),
        preprocess=values.get("preprocess"),
        method={"name": title(method), **complete_arguments("method", method, values["method"], config)},
        task={"name": title(task), **task_arguments},
        train=_resolve_training(values.get("train", {}), task_arguments.get("shots"), config),
        seed=seed,
    )
    run_config.validate()
    return run_config


def _require_several_labels(method: type, settings: Settings) -> None:
    """ValueError for a class of methods, alone or around another, that can't learn from items with several labels."""
    remedy = "Take a method whose loss is of its logits alone, such as coop, vpt or dualcoop."
    if getattr(method, "needs_single_labels", False) is True:
        raise ValueError(
            f"method: expected one that learns from several labels an item, got {settings['name']}, which learns from "
            f"one, by a loss or statistics of its own. {remedy}"
        )
    if getattr(method, "needs_unlabelled", False) is True:
        raise ValueError(
            f"method: expected one that learns from several labels an item, got {settings['name']}, which learns from "
            f"unlabelled ones. {remedy}"
        )
    for key, annotation in get_constructor_types(method).items():
        inner = settings.get(key)
        inner = {"name": inner} if isinstance(inner, str) else inner
        if get_nested_kind(annotation) == "method" and isinstance(inner, dict) and isinstance(inner.get("name"), str):
            _require_several_labels(resolve_class("method", inner["name"]), inner)


def _require_plain_settings(config: LayeredConfig) -> None:
    """ValueError for a seed, backbone or preprocessing that is none."""
    seed, backbone, preprocess = (config.values.get(k) for k in ("seed", "backbone", "preprocess"))
    if "seed" in config.values and type(seed) is not int:
        raise ValueError(f"{config.find_origin('seed')}: seed: expected an integer, got {seed!r}. Set seed=1.")
    if "backbone" in config.values and not (isinstance(backbone, str) and backbone.strip()):
        raise ValueError(
            f"{config.find_origin('backbone')}: backbone: expected the name of a backbone, got {backbone!r}. Set "
            "--backbone glyph, or another of `vlprompt list backbones`."
        )
    if preprocess is not None and not isinstance(preprocess, str | dict):
        raise ValueError(
            f"{config.find_origin('preprocess')}: preprocess: expected the name of a preset or settings, got "
            f"{preprocess!r}. Choose one of `vlprompt list preprocess`."
        )


def _resolve_training(values: Settings, shots: int | None, config: LayeredConfig) -> Arguments:
    """Complete the settings of training; a recipe may give epochs or iterations by the number of shots."""
    from vlprompt.engine.train_config import TrainConfig

    values = dict(values)
    for key in ("epochs", "iterations"):
        if isinstance(by_shots := values.get(key), dict):
            if shots not in by_shots:
                raise ValueError(
                    f"{config.find_origin(f'train.{key}')}: train.{key}: expected one of the shots "
                    f"{', '.join(map(str, by_shots))}, got {shots}. Set train.{key} to a number, or task.shots to one "
                    "of these."
                )
            values[key] = by_shots[shots]
    return complete_arguments("train", TrainConfig, values, config)


def load_layered_config(
    method: str | None,
    shots: int | None = None,
    seed: int | None = None,
    *,
    dataset: str | None = None,
    task: str | None = None,
    backbone: str | None = None,
    config_file: Path | None = None,
    overrides: Sequence[Override] = (),
    origin: str = COMMAND_LINE,
) -> LayeredConfig:
    """Collect the settings of one run. Later wins: recipe < file < options < key=value.

    Args:
        config_file: a YAML file of settings.
        overrides: key=value texts, such as "train.lr=0.1", which the types of the arguments read; or settings.
        origin: where the other arguments come from, for errors.
    """
    task_options = {"dataset": dataset, "name": task, "shots": shots}
    options: Settings = {
        "method": {"name": method} if method else {},
        "task": {key: value for key, value in task_options.items() if value is not None},
    }
    options |= {key: value for key, value in (("backbone", backbone), ("seed", seed)) if value is not None}
    layers = [(read_yaml(config_file), str(config_file))] if config_file is not None else []
    layers.append((options, origin))
    config = LayeredConfig([*_load_recipes(LayeredConfig(layers, overrides).values), *layers], overrides)
    apply_argument_types(config)
    return config


def _load_recipes(values: Settings) -> list[tuple[Settings, str]]:
    """Return the layers below the user's settings: the default task and the recipes of task, method and backbone."""
    method, backbone, task = values["method"].get("name", ""), values.get("backbone", ""), values["task"]
    backbone = backbone if isinstance(backbone, str) else ""  # another value is refused later, with its origin
    kind = task.get("name")
    if not kind:
        is_language_model = backbone.partition(":")[0] in WEIGHT_PRECISIONS
        kind = "domain" if is_adaptation_method(method) else "text" if is_language_model else "few_shot"
    layers: list[tuple[Settings, str]] = [({"task": {"name": kind}}, "the defaults")]
    for path in find_recipes(kind, method, backbone or "glyph"):
        recipe = read_yaml(path)
        by_dataset = recipe.pop("datasets", {})  # other settings for certain datasets
        layers.append((recipe, str(path)))
        if (settings := by_dataset.get(task.get("dataset"))) is not None:
            layers.append((settings, f"{path} (datasets)"))
    return layers


def resolve_grid(
    methods: Sequence[str | None],
    shots: Sequence[int | None],
    seeds: Sequence[int | None],
    **options: Unpack[LayerOptions],
) -> list[RunConfig]:
    """Resolve all combinations; `options` are those of `load_layered_config`."""
    return [resolve(load_layered_config(name, k, seed, **options)) for name, k, seed in product(methods, shots, seeds)]
