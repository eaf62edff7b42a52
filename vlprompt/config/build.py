"""YAML and key=value to constructor arguments. Configuration is nothing else: no defaults of its own, no registry."""

import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from vlprompt import methods, tasks
from vlprompt.config.sources import READERS, WORDS
from vlprompt.layers import heads, verbalizers
from vlprompt.runtime.errors import nearest

if TYPE_CHECKING:
    from vlprompt.core.method import Method
    from vlprompt.core.towers import Backbone


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
    places: dict[str, Any] = {"method": methods, "task": tasks, "reader": verbalizers if name in WORDS else heads}
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
    from vlprompt.core.towers import AnyTower

    kind = "AnyTower" if annotation == AnyTower else getattr(annotation, "__name__", "")
    if kind in ("Clip", "Tower", "AnyTower", "VisionTower", "LanguageTower"):
        return "AnyTower" if kind == "Tower" else kind
    return {"clip": "Clip", "tower": "AnyTower", "lm": "LanguageTower"}.get(name) if annotation is Any else None


def build_method(about: dict[str, Any], backbone: "Backbone", kind: str = "method") -> "Method":
    """The method (or a reader) of a resolved configuration on a backbone; ValueError where it needs texts too."""
    from vlprompt.core.towers import Clip, LanguageTower, tower_of

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
