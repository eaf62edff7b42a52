"""YAML and key=value to constructor arguments. Configuration is nothing else: no defaults of its own, no registry."""

import inspect
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from vlprompt.config.build import _adapts, _frozen, _part, find, hints
from vlprompt.config.sources import Source, override, read
from vlprompt.core.towers import HELD
from vlprompt.runtime.errors import nearest
from vlprompt.runtime.paths import configs_folder


def recipes(task: str, method: str, backbone: str) -> list[Path]:
    """configs/<task>/<method>.yaml, the paper's values; <task>/<backbone>.yaml and <task>/<backbone>/<method>.yaml."""
    root, kind = configs_folder() / task, backbone.partition(":")[0].removesuffix("/random")
    kind = "hf" if kind in HELD else kind
    chosen = [root / f"{method}.yaml", root / f"{kind}.yaml", root / kind / f"{method}.yaml"]
    return [path for path in chosen if path.is_file()]


def complete(kind: str, cls: type, given: dict[str, Any], source: Source) -> dict[str, Any]:
    """All arguments of a class but its frozen backbone, checked against their annotations, defaults filled in."""
    from pydantic import ConfigDict, ValidationError, create_model

    from vlprompt.config.describe import plain

    fields: dict[str, Any] = {}
    known = hints(cls)
    for name, annotation in known.items():
        if _frozen(name, annotation):
            continue
        default = inspect.signature(cls).parameters[name].default
        if default is inspect.Parameter.empty:
            default = {"name": "linear"} if _part(annotation) == "reader" else ...  # what a head is, if nobody says
        fields[name] = (dict[str, Any] if _part(annotation) else annotation, default)
    parts = {name: part for name, annotation in known.items() if (part := _part(annotation)) is not None}
    given = {
        k: {"name": v} if k in parts and isinstance(v, str) else v for k, v in given.items() if k != "name"
    }  # a name alone stands for settings
    for name in given:
        if name not in fields:
            hint = nearest(name, list(fields))
            raise ValueError(f"{source.said(f'{kind}.{name}')}: unknown key '{kind}.{name}'; {hint}")
    try:
        model = create_model(cls.__name__, __config__=ConfigDict(arbitrary_types_allowed=True), **fields)(**given)
    except ValidationError as error:
        first = max(error.errors(), key=lambda one: len(one["loc"]))  # of several forms the one that came furthest
        key = ".".join([kind, *(str(part) for part in first["loc"] if "[" not in str(part))])
        came = "nothing" if first["type"] == "missing" else repr(first["input"])
        quoted = first["type"] == "string_type" and len(first["loc"]) > 1
        hint = """ (numbers that are names need quotes: 'task.order=["1","2"]')""" if quoted else ""
        raise ValueError(
            f"{source.said(key)}: {key}: {first['msg'][0].lower()}{first['msg'][1:]}; got {came}{hint}"
        ) from error
    values = {name: getattr(model, name) for name in fields}
    for name, part in parts.items():
        if isinstance(values.get(name), dict):
            if not values[name].get("name"):
                raise ValueError(f"{source.said(f'{kind}.{name}')}: {kind}.{name} needs a name, such as {{name: coop}}")
            inner = find(part, values[name]["name"])
            values[name] = {"name": values[name]["name"], **complete(f"{kind}.{name}", inner, values[name], source)}
    return {name: plain(value) for name, value in values.items()}


def resolve(source: Source) -> dict[str, Any]:
    """A whole configuration of one run, as `described.configuration` writes it."""
    from vlprompt.config.describe import title
    from vlprompt.engine.train_config import Train

    values = source.values
    for section in ("method", "task"):
        if not values.get(section, {}).get("name"):
            raise ValueError(
                f"no {section} was named: give it on the command line or as '{section}: {{name: ...}}' in a file"
            )
    if not isinstance(values.get("seed", 1), int):
        raise ValueError(f"{source.said('seed')}: seed: input should be a valid integer; got {values['seed']!r}")
    seed, cls, task = (
        values.get("seed", 1),
        find("method", values["method"]["name"]),
        find("task", values["task"]["name"]),
    )
    about_task = complete("task", task, {"seed": seed} | values["task"], source)
    about_train = dict(values.get("train", {}))
    for key in ("epochs", "iterations"):
        if isinstance(by_shots := about_train.get(key), dict):
            shots = about_task.get("shots")
            if shots not in by_shots:
                raise ValueError(
                    f"{source.said(f'train.{key}')}: train.{key} has no entry for {shots} shots; "
                    f"it has {', '.join(map(str, by_shots))}"
                )
            about_train[key] = by_shots[shots]
    train = complete("train", Train, about_train, source)
    Train(**train)  # says which value is out of its range
    return {
        "backbone": values.get("backbone", "glyph"),
        **({"look": values["look"]} if "look" in values else {}),
        "method": {"name": title(cls), **complete("method", cls, values["method"], source)},
        "task": {"name": title(task), **about_task},
        "train": train,
        "seed": seed,
    }


def layered(name: str | None, shots: int | None = None, seed: int | None = None, *, dataset: str | None = None,
            task: str | None = None, backbone: str | None = None, file: Path | None = None,
            overrides: Sequence[str] = ()) -> Source:  # fmt: skip
    """The settings of one run before they are resolved. Later wins: recipe < file < options < key=value."""
    about = {"dataset": dataset, "name": task, "shots": shots}
    options: dict[str, Any] = {"method": {"name": name} if name else {}}
    options["task"] = {key: value for key, value in about.items() if value is not None}
    options |= {key: value for key, value in (("backbone", backbone), ("seed", seed)) if value is not None}
    given = [(read(file), str(file))] if file is not None else []
    given += [(options, "the command line"), *((override(text), f"the option {text!r}") for text in overrides)]
    mine = Source(given).values
    chosen = mine["method"].get("name", "")
    of_texts = mine.get("backbone", "").partition(":")[0] in HELD
    kind = mine["task"].get("name") or ("domain" if _adapts(chosen) else "text" if of_texts else "few_shot")
    paths = recipes(kind, chosen, mine.get("backbone", "glyph"))
    below: list[tuple[dict[str, Any], str]] = [({"task": {"name": kind}}, "the defaults")]
    for path in paths:
        recipe = read(path)
        of_datasets = recipe.pop("datasets", {})  # what a recipe says otherwise for some datasets
        below.append((recipe, str(path)))
        if (own := of_datasets.get(mine["task"].get("dataset"))) is not None:
            below.append((own, f"{path} (datasets)"))
    return Source([*below, *given])


def grid(method: Sequence[str | None], shots: Sequence[int | None], seeds: Sequence[int | None],
         **how: Any) -> list[dict[str, Any]]:  # fmt: skip
    """Resolved configurations of all combinations; the rest as `layered` takes it."""
    return [resolve(layered(name, k, seed, **how)) for name, k, seed in product(method, shots, seeds)]
