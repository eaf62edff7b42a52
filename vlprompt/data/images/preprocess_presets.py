"""Looks by name: how the pixels of a paper's results were made, laid over the look that a tower was trained with."""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from vlprompt.core.images import Look
from vlprompt.runtime.errors import nearest
from vlprompt.runtime.paths import configs_folder

CHOICES = {"interpolation": ("bicubic", "bilinear"), "resize": ("shortest", "squash"), "antialias": (True, False)}
FIELDS = [field.name for field in fields(Look)]


def presets() -> list[str]:
    """The names of the looks in configs/looks."""
    return sorted(path.stem for path in (configs_folder() / "looks").glob("*.yaml"))


def look(given: str | Mapping[str, Any], base: Look) -> Look:
    """The look `base` with what is given instead: a preset's name, or fields and perhaps {preset: name} under them.

    size: a whole number or [height, width]; mean, std: a number or one per channel. ValueError for a name, a field or a
    value that there is not.
    """
    told: dict[Any, Any] = {"preset": given} if isinstance(given, str) else dict(given)
    found = base
    if "preset" in told:
        found = _laid(_read(told.pop("preset")), base)
    return _laid(told, found)


def _read(name: object) -> dict[Any, Any]:
    import yaml

    if name not in presets():
        raise ValueError(f"there is no look {name!r}; {nearest(str(name), presets())}")
    path = configs_folder() / "looks" / f"{name}.yaml"
    return yaml.safe_load(path.read_text("utf-8"))


def _laid(told: dict[Any, Any], base: Look) -> Look:
    return replace(base, **{key: _checked(key, value, base) for key, value in told.items()})


def _checked(key: object, value: Any, base: Look) -> Any:
    if key not in FIELDS:
        raise ValueError(f"a look has no {key!r}; {nearest(str(key), ['preset', *FIELDS])}")
    if key in CHOICES:
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in CHOICES[str(key)]):
            choices = ", ".join(map(str, CHOICES[str(key)]))
            raise ValueError(f"a look's {key} is {value!r}; the choices are {choices}")
        return value
    if key == "size":
        sides = list(value) if isinstance(value, list | tuple) else [value, value]
        if len(sides) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sides):
            raise ValueError(f"a look's size is {value!r}; it is a whole number of pixels or [height, width]")
        return tuple(sides)
    if key == "crop":
        if not _number(value) or not 0 < value <= 1:
            raise ValueError(f"a look's crop is {value!r}; it is the share that is cut out, above 0 and up to 1")
        return float(value)
    each = list(value) if isinstance(value, list | tuple) else [value] * len(base.mean)
    if len(each) != len(base.mean) or not all(map(_number, each)) or (key == "std" and min(each) <= 0):
        above = ", above 0" if key == "std" else ""
        raise ValueError(
            f"a look's {key} is {value!r}; it is a number or one for each of {len(base.mean)} channels{above}"
        )
    return tuple(map(float, each))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
