"""YAML and key=value to constructor arguments. Configuration is nothing else: no defaults of its own, no registry."""

import inspect
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from vlprompt import methods, readers, tasks, words
from vlprompt.errors import nearest
from vlprompt.language import HELD
from vlprompt.source import READERS as READERS
from vlprompt.source import WORDS, Source, override, read
from vlprompt.source import configs_folder as configs_folder

if TYPE_CHECKING:
    from vlprompt.method import Method
    from vlprompt.vision import Backbone


def recipes(task: str, method: str, backbone: str) -> list[Path]:
    """configs/<task>/<method>.yaml, the paper's values; <task>/<backbone>.yaml and <task>/<backbone>/<method>.yaml."""
    root, kind = configs_folder() / task, backbone.partition(":")[0].removesuffix("/random")
    kind = "hf" if kind in HELD else kind
    chosen = [root / f"{method}.yaml", root / f"{kind}.yaml", root / kind / f"{method}.yaml"]
    return [path for path in chosen if path.is_file()]


def find(kind: str, name: str) -> type:
    """A method's or a task's class by its short name, or a stranger's by module:Class.

    ValueError with the nearest name.
    """
    packages: dict[str, dict[str, str]] = {"method": methods.found(), "task": tasks.found(), "reader": READERS}
    if ":" in name:
        module, _, cls = name.partition(":")
        sys.path.insert(
            0, str(Path.cwd())
        )  # a console script does not look here; only for this import (a trap: datasets/)
        try:
            if isinstance(found := getattr(import_module(module), cls), type):
                return found
            raise ImportError(f"{cls} is not a class")
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"there is no {kind} {name!r} (module:Class) to import from here: {error}") from error
        finally:
            sys.path.remove(str(Path.cwd()))
    if name not in packages[kind]:
        raise ValueError(f"there is no {kind} {name!r}; {nearest(name, list(packages[kind]))}")
    places: dict[str, Any] = {"method": methods, "task": tasks, "reader": words if name in WORDS else readers}
    return getattr(places[kind], packages[kind][name])


def hints(cls: type) -> dict[str, Any]:
    """The annotated arguments of a constructor (or the fields of a dataclass)."""
    known = get_type_hints(cls.__init__)
    return {name: known.get(name, Any) for name in inspect.signature(cls).parameters}


PARTS = {"Method": "method", "Reader": "reader"}  # arguments that are themselves made from settings


def _part(annotation: Any) -> str | None:
    return PARTS.get(getattr(annotation, "__name__", ""))


def _frozen(name: str, annotation: Any) -> str | None:
    """Which part of the backbone an argument is: it is annotated so, or a stranger just calls it clip, tower or lm."""
    from vlprompt.vision import AnyTower

    kind = "AnyTower" if annotation == AnyTower else getattr(annotation, "__name__", "")
    if kind in ("Clip", "Tower", "AnyTower", "VisionTower", "LanguageTower"):
        return "AnyTower" if kind == "Tower" else kind
    return {"clip": "Clip", "tower": "AnyTower", "lm": "LanguageTower"}.get(name) if annotation is Any else None


def complete(kind: str, cls: type, given: dict[str, Any], source: Source) -> dict[str, Any]:
    """All arguments of a class but its frozen backbone, checked against their annotations, defaults filled in."""
    from pydantic import ConfigDict, ValidationError, create_model

    from vlprompt.described import plain

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
    from vlprompt.described import title
    from vlprompt.train import Train

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


def build_method(about: dict[str, Any], backbone: "Backbone", kind: str = "method") -> "Method":
    """The method (or a reader) of a resolved configuration on a backbone; ValueError where it needs texts too."""
    from vlprompt.language import LanguageTower
    from vlprompt.tower import Clip
    from vlprompt.vision import tower_of

    cls = find(kind, about["name"])
    given: dict[str, Any] = {k: v for k, v in about.items() if k != "name"}
    for name, annotation in hints(cls).items():
        if (frozen := _frozen(name, annotation)) is not None:
            if frozen == "Clip" and not isinstance(backbone, Clip):
                raise ValueError(
                    f"{about['name']} needs a CLIP, image and text tower; {backbone.spec} has no texts: take "
                    "--backbone glyph or open_clip:NAME/TAG, or a method on an image tower, such as vpt with "
                    "method.reader=linear"
                )
            if frozen == "LanguageTower" and not isinstance(backbone, LanguageTower):
                raise ValueError(
                    f"{about['name']} needs a language model, which {backbone.spec} is not: take --backbone "
                    "hf:FOLDER or hf:OWNER/NAME, and a dataset of texts"
                )
            if frozen == "VisionTower" and isinstance(backbone, LanguageTower):
                raise ValueError(
                    f"{about['name']} looks at images, and {backbone.spec} is a language model: take --backbone "
                    "glyph, or a method that reads texts, such as prefix_tuning or lora"
                )
            given[name] = backbone if frozen == "Clip" else tower_of(backbone)
        elif (part := _part(annotation)) is not None:
            given[name] = build_method(given[name], backbone, part)
    return cls(**given)


def build_task(about: dict[str, Any]) -> Any:
    return find("task", about["name"])(**{k: v for k, v in about.items() if k != "name"})


def _adapts(method: str) -> bool:
    """Whether a method is for unlabelled images of another domain, so that no other task suits it."""
    return bool(method) and getattr(find("method", method), "adapts", False) is True


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
