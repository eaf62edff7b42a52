"""Read key=value texts of the command line by the types of the arguments that they set."""

import re
from types import NoneType, UnionType
from typing import Union, get_args, get_origin

from vlprompt.config.build import Annotation, get_constructor_types, get_nested_kind, resolve_class
from vlprompt.config.sources import LayeredConfig, PlainValue, Settings, parse_text, strip_quotes

SECTION_TYPES = {"backbone": str, "preprocess": str | dict | None}
NULL_TEXTS = ("", "~", "null", "Null", "NULL")


def parse_typed(text: str, annotation: Annotation, key: str = "") -> PlainValue:
    """Parse the text of a value by the annotation of its argument.

    A string is what was typed, without one pair of quotes around the whole. An argument that takes something else too
    takes a text without quotes that is null, a number, a truth value, [a list] or {a mapping} for that. What takes no
    string is read as YAML.

    Args:
        text: what stands behind the equals sign.
        annotation: of the argument.
        key: of the setting, for errors.

    Raises:
        ValueError: for an argument that takes lists or mappings too, and a text in brackets that is none.
    """
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if str not in members:
        return parse_text(text)
    if NoneType in members and text.strip() in NULL_TEXTS:
        return None
    types = [get_origin(member) or member for member in members]
    brackets = {"[": (list, tuple), "{": (dict,)}.get(text.strip()[:1], ())
    if any(kind in brackets for kind in types) and re.fullmatch(r"\[.*\]|\{.*\}", text.strip(), re.DOTALL):
        if isinstance(value := parse_text(text), list | dict):
            return value
        raise ValueError(
            f"the option {f'{key}={text}'!r}: expected a list or mapping, got a text that is none. Write its texts in "
            f'double quotes, as in \'{key}=["a", "b"]\'; put quotes around the whole if it is one text.'
        )
    value = parse_text(text)
    return value if type(value) in types and type(value) in (bool, int, float) else strip_quotes(text)


def apply_argument_types(config: LayeredConfig) -> None:
    """Set every value that came as a text by the type of its argument; unknown keys stay as they are."""
    for key, text in config.texts.items():
        section, *path = key.split(".")
        if not path and section in SECTION_TYPES:
            if not isinstance(config.values[section], dict):  # fields, perhaps over a preset, are merged already
                config.values[section] = parse_typed(text, SECTION_TYPES[section], key)
        elif path and isinstance(settings := config.values.get(section), dict):
            _set_typed(section, settings, path, key, text)


def _set_typed(kind: str, settings: Settings, path: list[str], key: str, text: str) -> None:
    """Set one argument of a method, task, head or of training, or of a part of one."""
    types = _find_types(kind, settings)
    name, *rest = path
    if name not in settings or name not in types:
        return
    part = get_nested_kind(types[name])
    if rest and part is not None and isinstance(settings[name], dict):
        _set_typed(part, settings[name], rest, key, text)
    elif not rest and part is None:
        settings[name] = parse_typed(text, types[name], key)


def _find_types(kind: str, settings: Settings) -> dict[str, Annotation]:
    """Return the annotations of the arguments in a section; {} where there is no class for it yet."""
    if kind == "train":
        from vlprompt.engine.train_config import TrainConfig

        return get_constructor_types(TrainConfig)
    if kind == "teacher":
        from vlprompt.core.teacher import TeacherSettings

        return get_constructor_types(TeacherSettings)
    name = settings.get("name")
    return get_constructor_types(resolve_class(kind, name)) if kind != "search" and isinstance(name, str) else {}
