"""Settings from files and key=value, merged, each with the file or option that it came from."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from vlprompt.runtime.errors import suggest_nearest

LANGUAGE_HEADS = {  # heads that read a language model's vocabulary
    "verbalizer": "Verbalizer",
    "soft_verbalizer": "SoftVerbalizer",
    "response": "ResponseHead",
    "tags": "TagHead",
    "sentences": "SentenceHead",
}
HEADS = {"linear": "LinearHead", "cosine": "CosineHead", "texts": "TextHead", **LANGUAGE_HEADS}
SECTIONS = ("backbone", "preprocess", "method", "task", "train", "seed", "search")
PlainValue: TypeAlias = Any  # what YAML and JSON hold; its type is checked when settings are resolved
Settings: TypeAlias = dict[str, PlainValue]  # a section, or nested sections
# key=value as it was typed; or settings whose values have their types, perhaps with where they come from
Override: TypeAlias = str | Settings | tuple[Settings, str]
COMMAND_LINE = "the command line"
NAME_KEYS = ("backbone", "method.name", "task.name", "task.dataset")  # texts that decide which recipes apply


class LayeredConfig:
    """Merged settings that remember which file or option gave each key.

    Args:
        layers: (settings, origin) pairs; later layers win.
        overrides: of the command line, over all layers.
    """

    def __init__(self, layers: Sequence[tuple[Settings, str]], overrides: Sequence[Override] = ()) -> None:
        self.values: Settings = {}
        self.origins: dict[str, str] = {}
        self.texts: dict[str, str] = {}  # values as they were typed, by key
        for values, origin in layers:
            self.add_layer(values, origin)
        require_one_length(overrides)
        for override in overrides:
            self.add_override(override)

    def add_layer(self, values: Settings, origin: str) -> None:
        """Merge settings over the present ones.

        Raises:
            ValueError: for an unknown section, or a section that is no mapping.
        """
        if unknown := [k for k in values if k not in SECTIONS]:
            raise ValueError(f"{origin}: unknown key {unknown[0]!r}; {suggest_nearest(str(unknown[0]), SECTIONS)}")
        values = _expand_names(values)
        if wrong := [k for k in ("method", "task", "train", "search") if not isinstance(values.get(k, {}), dict)]:
            raise ValueError(
                f"{origin}: {wrong[0]}: expected settings, got {values[wrong[0]]!r}. "
                f"Write them as {wrong[0]}.NAME=VALUE."
            )
        if isinstance(preset := values.get("preprocess"), str) and isinstance(self.values.get("preprocess"), dict):
            values = values | {"preprocess": {"preset": preset}}  # it leaves the fields over it as they are
        if _gives_epochs_alone(values) and self.values.get("train", {}).get("iterations") is not None:
            values = values | {"train": {**values["train"], "iterations": None}}  # they would win over the epochs
        self.values = merge_settings(_drop_replaced_settings(self.values, values), values)
        for key in _iter_key_paths(values):
            self.origins[key] = origin
            self.texts.pop(key, None)

    def add_override(self, override: Override) -> None:
        """Merge key=value over the present settings; its text is stored until the type of its argument is known."""
        if not isinstance(override, str):
            self.add_layer(*(override if isinstance(override, tuple) else (override, COMMAND_LINE)))
            return
        self.add_layer(parse_override(override), f"the option {override!r}")
        key, _, text = override.partition("=")
        self.texts[key] = text

    def find_origin(self, key: str) -> str:
        """Return where a key came from, for an error message."""
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "the defaults")


def require_one_length(overrides: Sequence[Override]) -> None:
    """ValueError for overrides that give the epochs and the iterations of a training."""
    train: Settings = {}
    for override in overrides:
        values = parse_override(override) if isinstance(override, str) else override
        values = values[0] if isinstance(values, tuple) else values
        train |= section if isinstance(section := values.get("train"), dict) else {}
    if train.get("epochs") is not None and train.get("iterations") is not None:
        raise ValueError(
            f"train.epochs, train.iterations: expected one length of the training, got {train['epochs']!r} epochs and "
            f"{train['iterations']!r} iterations. Leave one of them out."
        )


def _gives_epochs_alone(values: Settings) -> bool:
    train = values.get("train", {})
    return train.get("epochs") is not None and "iterations" not in train


def merge_settings(base: Settings, update: Settings) -> Settings:
    """Merge nested mappings into new ones; other values of `update` replace those of `base`."""
    merged = dict(base)
    for key, value in update.items():
        below = base.get(key)
        merged[key] = (
            merge_settings(below if isinstance(below, dict) else {}, value) if isinstance(value, dict) else value
        )
    return merged


def _expand_names(values: Settings) -> Settings:
    """Write a method, task or head given by its name alone as {"name": ...}, and dotted search keys as nested ones."""
    for section in ("method", "task"):
        if isinstance(values.get(section), str):
            values = values | {section: {"name": values[section]}}
    if isinstance(method := values.get("method"), dict):
        parts = {part: {"name": method[part]} for part in ("head", "method") if isinstance(method.get(part), str)}
        values = values | {"method": method | parts}
    if isinstance(values.get("search"), dict):
        values = values | {"search": _nest_keys(values["search"])}
    return values


def _drop_replaced_settings(base: Settings, update: Settings) -> Settings:
    """Return `base` as settings below which `update` can stand: without those of a method (or head) of another name."""
    remaining = dict(base)
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(below := base.get(key), dict):
            is_renamed = "name" in value and "name" in below and value["name"] != below["name"]
            remaining[key] = {} if is_renamed else _drop_replaced_settings(below, value)
    if isinstance(preset := base.get("preprocess"), str) and isinstance(update.get("preprocess"), dict):
        remaining["preprocess"] = {"preset": preset}  # fields change a preset and do not replace it
    return remaining


def _nest_keys(values: Settings) -> Settings:
    """{"train.lr": x} -> {"train": {"lr": x}}, at any depth."""
    nested: Settings = {}
    for key, value in values.items():
        *sections, name = str(key).split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = section.get(name, {}) | _nest_keys(value) if isinstance(value, dict) else value
    return nested


def _iter_key_paths(values: Mapping[str, PlainValue], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _iter_key_paths(value, f"{prefix}{key}.")


def iter_flat_settings(values: Mapping[str, PlainValue], prefix: str = "") -> Iterator[tuple[str, PlainValue]]:
    """Yield ("section.key", value) of every value that is no mapping."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from iter_flat_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_yaml(path: Path, option: str = "--config", sections: Sequence[str] = SECTIONS) -> Settings:
    """Read a file of settings.

    Args:
        path: of the file.
        option: that names it, for errors.
        sections: that it may have, for errors.

    Raises:
        ValueError: if there is no such file, or it is not YAML, or holds no mapping.
    """
    from yaml import YAMLError

    from vlprompt.runtime.yaml_text import load_yaml

    if not path.is_file():
        raise ValueError(f"{option}: expected a YAML file, got {str(path)!r}, which does not exist. Correct the path.")
    try:
        values = load_yaml(path.read_text("utf-8")) or {}
    except (YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split()).replace('in "<unicode string>",', "at")
        raise ValueError(f"{path}: expected YAML, got an error: {text}. Correct it.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys, got a {type(values).__name__}. Write {', '.join(sections)} as keys.")
    return values


def parse_override(text: str) -> Settings:
    """ "method.n_ctx=4" -> {"method": {"n_ctx": 4}}; names are what was typed, other values YAML where they can be."""
    key, _, value = text.partition("=")
    is_name = key in NAME_KEYS and value.strip() != "null"
    return nest_setting(key, strip_quotes(value) if is_name else parse_text(value))


def format_override(key: str, value: PlainValue) -> str:
    """Return key=value that sets a text, or what JSON can hold."""
    if not isinstance(value, str):
        return f"{key}={json.dumps(value, ensure_ascii=False)}"
    quote = next((quote for quote in ('"', "'") if quote not in value), "")
    return f"{key}={quote}{value}{quote}"


def nest_setting(key: str, value: PlainValue) -> Settings:
    """ "method.n_ctx", 4 -> {"method": {"n_ctx": 4}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def parse_text(text: str) -> PlainValue:
    """Parse a value as YAML where it is YAML; "#" begins no comment in a number or a word."""
    from yaml import YAMLError

    from vlprompt.runtime.yaml_text import load_yaml

    try:
        value = load_yaml(text)
    except YAMLError:
        return strip_quotes(text)
    is_cut = "#" in text and not isinstance(value, list | dict) and text.strip()[:1] not in ('"', "'")
    return text if is_cut else value


def strip_quotes(text: str) -> str:
    """Return a text without one pair of quotes around the whole; other quotes are part of it."""
    stripped = text.strip()
    is_quoted = len(stripped) >= 2 and stripped[0] == stripped[-1] and stripped[0] in ("'", '"')
    return stripped[1:-1] if is_quoted and stripped[0] not in stripped[1:-1] else text
