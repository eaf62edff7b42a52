"""Settings from files and key=value, merged, each remembered with where it came from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlprompt.runtime.errors import nearest

WORDS = {"words": "Words", "soft_words": "SoftWords", "response": "Response", "tags": "Tags",
         "sentences": "Sentences"}  # of language models  # fmt: skip
READERS = {"linear": "Linear", "cosine": "Cosine", "texts": "Texts", **WORDS}
SECTIONS = ("backbone", "look", "method", "task", "train", "seed", "search")


class Source:
    """Merged configuration that remembers which file or option gave each key."""

    def __init__(self, layers: Sequence[tuple[dict[str, Any], str]]) -> None:
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}
        for values, origin in layers:
            self.add(values, origin)

    def add(self, values: dict[str, Any], origin: str) -> None:
        if unknown := [k for k in values if k not in SECTIONS]:
            raise ValueError(f"{origin}: unknown key {unknown[0]!r}; {nearest(str(unknown[0]), SECTIONS)}")
        from omegaconf import OmegaConf

        for section in ("method", "task"):
            if isinstance(values.get(section), str):
                values = values | {section: {"name": values[section]}}
        if isinstance(given := values.get("method"), dict):  # a part by its name alone
            parts = {part: {"name": given[part]} for part in ("reader", "method") if isinstance(given.get(part), str)}
            values = values | {"method": given | parts}
        if isinstance(values.get("search"), dict):
            values = values | {"search": _nested(values["search"])}
        if wrong := [k for k in ("method", "task", "train", "search") if not isinstance(values.get(k, {}), dict)]:
            raise ValueError(
                f"{origin}: {wrong[0]} takes settings, such as {wrong[0]}.NAME=VALUE; got {values[wrong[0]]!r}"
            )
        merged = OmegaConf.merge(OmegaConf.create(_kept(self.values, values)), OmegaConf.create(values))
        self.values = OmegaConf.to_container(merged, resolve=True)  # type: ignore[assignment]
        for key in _paths(values):
            self.origin[key] = origin

    def said(self, key: str) -> str:
        """Where a key came from, for an error message."""
        while key and key not in self.origin:
            key = key.rpartition(".")[0]
        return self.origin.get(key, "the defaults")


def _kept(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old settings without those of a method (or reader) that the new ones replace by one of another name."""
    found = dict(old)
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(before := old.get(key), dict):
            renamed = "name" in value and "name" in before and value["name"] != before["name"]
            found[key] = {} if renamed else _kept(before, value)
    return found


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """{"train.lr": x} -> {"train": {"lr": x}}, at any depth."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *above, last = str(key).split(".")
        inner = found
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = inner.get(last, {}) | _nested(value) if isinstance(value, dict) else value
    return found


def _paths(values: dict[str, Any], above: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        found.append(f"{above}{key}")
        if isinstance(value, dict):
            found += _paths(value, f"{above}{key}.")
    return found


def read(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise ValueError(f"there is no configuration file {str(path)!r}")
    try:
        found = yaml.safe_load(path.read_text("utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold keys ({', '.join(SECTIONS)}), not a {type(found).__name__}")
    return found


def override(text: str) -> dict[str, Any]:
    """ "method.n_ctx=4" -> {"method": {"n_ctx": 4}}; the value is read as YAML where it is YAML."""
    import yaml

    key, _, value = text.partition("=")
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError:
        found = value
    for part in reversed(key.split(".")):
        found = {part: found}
    return found  # type: ignore[return-value]
