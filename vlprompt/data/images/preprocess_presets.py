"""Preprocessing by name or by fields: how the pixels of a paper's results were made, laid over a tower's own."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from vlprompt.core.images import Preprocessing
from vlprompt.data.validation import Schema, load_yaml_mapping, validate
from vlprompt.runtime.errors import suggest_nearest
from vlprompt.runtime.paths import find_configs_folder

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]


class PreprocessingFields(Schema):
    """The fields of a preprocessing that a preset or a user gives; the others stay as they are."""

    preset: str | None = Field(None, description="the name of a preset")
    size: PositiveInt | list[PositiveInt] | None = Field(
        None, description="a positive whole number of pixels or [height, width]"
    )
    mean: FiniteFloat | list[FiniteFloat] | None = Field(None, description="a number or one per channel")
    std: PositiveFloat | list[PositiveFloat] | None = Field(None, description="a number above 0 or one per channel")
    interpolation: Literal["bicubic", "bilinear"] | None = Field(None, description="bicubic or bilinear")
    resize: Literal["shortest", "squash"] | None = Field(None, description="shortest or squash")
    antialias: bool | None = Field(None, description="true or false")
    crop: FiniteFloat | None = Field(None, gt=0, le=1, description="the fraction that is cut out, above 0 and up to 1")


def list_presets() -> list[str]:
    """Return the names of the presets in configs/preprocess."""
    return sorted(path.stem for path in (find_configs_folder() / "preprocess").glob("*.yaml"))


def resolve_preprocessing(setting: str | Mapping[str, Any], base: Preprocessing) -> Preprocessing:
    """Override fields of a preprocessing.

    Args:
        setting: the name of a preset, or fields and perhaps {preset: name} below them. size is a number or
            [height, width]; mean and std are a number or one per channel.
        base: the preprocessing of the tower.

    Raises:
        ValueError: for an unknown preset, an unknown field and a wrong value.
    """
    values = {"preset": setting} if isinstance(setting, str) else dict(setting)
    if "preset" in values:
        base = _override_fields(_load_preset(values.pop("preset")), base, "preprocess")
    return _override_fields(values, base, "preprocess")


def _load_preset(name: object) -> Mapping[Any, Any]:
    if name not in list_presets():
        raise ValueError(f"preprocess: expected a preset, got {name!r}; {suggest_nearest(str(name), list_presets())}")
    return load_yaml_mapping(find_configs_folder() / "preprocess" / f"{name}.yaml")


def _override_fields(values: Mapping[Any, Any], base: Preprocessing, where: str) -> Preprocessing:
    """Replace the fields that are given."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    fields = validate(PreprocessingFields, plain, where)
    if empty := [key for key, value in plain.items() if value is None]:
        raise ValueError(
            f"{where}.{empty[0]}: expected a value, got null. Leave it out for that of the preset or the backbone."
        )
    changes: dict[str, Any] = {key: getattr(fields, key) for key in plain if key != "preset"}
    if "size" in changes:
        changes["size"] = _expand(changes["size"], 2, f"{where}: size: expected [height, width]")
    for key in {"mean", "std"} & changes.keys():
        n_channels = len(base.mean)
        expected = f"{where}: {key}: expected a number or one for each of {n_channels} channels"
        changes[key] = tuple(map(float, _expand(changes[key], n_channels, expected)))
    if "crop" in changes:
        changes["crop"] = float(changes["crop"])
    return replace(base, **changes)


def _expand(value: Any, n: int, expected: str) -> tuple[Any, ...]:
    """Repeat a number n times; check the length of a list."""
    values = tuple(value) if isinstance(value, list) else (value,) * n
    if len(values) != n:
        raise ValueError(f"{expected}, got {value!r}. Correct the value.")
    return values
