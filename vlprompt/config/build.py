"""Build methods, heads and tasks from resolved configurations."""

import sys
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, get_type_hints

from vlprompt import methods, tasks
from vlprompt.config.sources import HEADS, LANGUAGE_HEADS, Settings
from vlprompt.layers import heads, verbalizers
from vlprompt.runtime.errors import suggest_nearest

if TYPE_CHECKING:
    import torch

    from vlprompt.core.method import Method
    from vlprompt.core.teacher import Teacher, TeacherSettings
    from vlprompt.core.towers import Backbone
    from vlprompt.tasks import Task

OpenTeacher: TypeAlias = "Callable[[TeacherSettings, torch.device], Teacher]"
Annotation: TypeAlias = Any  # a type as signatures write it: a class, a union, a Literal
# types of arguments that are built from settings themselves
NESTED_KINDS = {"Method": "method", "TowerMethod": "method", "Head": "head", "Teacher": "teacher"}


def resolve_class(kind: str, name: str) -> type:
    """Return the class of a method, task or head.

    Args:
        kind: "method", "task" or "head".
        name: its short name, or module:Class for a class outside this package.

    Raises:
        ValueError: with the nearest name, or why the class can't be imported.
    """
    if ":" in name:
        return _import_class(kind, name)
    classes = {"method": methods.find_classes, "task": tasks.find_classes, "head": lambda: HEADS}[kind]()
    if name not in classes:
        raise ValueError(f"{kind}: expected a known name, got {name!r}; {suggest_nearest(name, list(classes))}")
    modules = {"method": methods, "task": tasks, "head": verbalizers if name in LANGUAGE_HEADS else heads}
    return getattr(modules[kind], classes[name])


def _import_class(kind: str, name: str) -> type:
    module, _, class_name = name.partition(":")
    # a console script does not search the working folder; it is added for this import only, because a folder named
    # datasets/ in it would hide the package of that name from transformers
    sys.path.insert(0, str(Path.cwd()))
    try:
        if not isinstance(cls := getattr(import_module(module), class_name), type):
            raise ImportError(f"{class_name} is not a class")
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{kind}: expected module:Class that can be imported from here, got {name!r} ({error}). "
            "Correct the name, or add the module's folder to PYTHONPATH."
        ) from error
    except SyntaxError as error:
        raise ValueError(
            f"{kind}: expected a module that can be imported, got {name!r} with an error in {error.filename}, line "
            f"{error.lineno}: {error.msg}. Correct it there."
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    _require_kind(kind, name, cls)
    return cls


def _require_kind(kind: str, name: str, cls: type) -> None:
    """Raise ValueError for a class that is no method, head or task."""
    from vlprompt.core.head import Head
    from vlprompt.core.method import Method

    expected = {"method": "a subclass of vlprompt.Method", "head": "a subclass of vlprompt.core.head.Head"}
    if kind == "task":
        fits = all(hasattr(cls, part) for part in ("stages", "summary"))
    else:
        fits = issubclass(cls, Method if kind == "method" else Head)
    if not fits:
        raise ValueError(
            f"{kind}: expected {expected.get(kind, 'a class with the methods stages and summary')}, got {name!r}, a "
            f"class of another kind. Name the class of a {kind}."
        )


def get_constructor_types(cls: type) -> dict[str, Annotation]:
    """Return the annotations of a constructor's arguments (or of a dataclass's fields).

    Raises:
        ValueError: for annotations that name what the module does not import.
    """
    try:
        hints = get_type_hints(cls.__init__)
    except NameError as error:
        raise ValueError(
            f"{cls.__module__}:{cls.__qualname__}: expected annotations of names that its module imports, got "
            f"{error}. Import it outside of TYPE_CHECKING."
        ) from error
    return {name: hints.get(name, Any) for name in signature(cls).parameters}


def get_nested_kind(annotation: Annotation) -> str | None:
    """Return "method", "head" or "teacher" where an argument is one."""
    return NESTED_KINDS.get(getattr(annotation, "__name__", ""))


def get_backbone_kind(name: str, annotation: Annotation) -> str | None:
    """Return which part of the backbone an argument takes: by its annotation, or its name where it has none."""
    from vlprompt.core.towers import AnyTower

    kind = "AnyTower" if annotation == AnyTower else getattr(annotation, "__name__", "")
    if kind in ("Clip", "Tower", "AnyTower", "VisionTower", "LanguageTower"):
        return "AnyTower" if kind == "Tower" else kind
    return {"clip": "Clip", "tower": "AnyTower", "lm": "LanguageTower"}.get(name) if annotation is Any else None


def require_backbone_kind(method: str, kind: str, backbone: "Backbone") -> None:
    """ValueError where a method needs another kind of backbone."""
    from vlprompt.core.towers import Clip, LanguageTower

    if kind == "Clip" and not isinstance(backbone, Clip):
        raise ValueError(
            f"{method}: expected a CLIP, with an image and a text tower, got {backbone.spec}, which has no texts. "
            "Choose --backbone glyph or open_clip:NAME/TAG, or a method on an image tower, such as vpt with "
            "method.head=linear."
        )
    if kind == "LanguageTower" and not isinstance(backbone, LanguageTower):
        raise ValueError(
            f"{method}: expected a language model, got {backbone.spec}. "
            "Choose --backbone hf:FOLDER or hf:OWNER/NAME, and a dataset of texts."
        )
    if kind == "VisionTower" and isinstance(backbone, LanguageTower):
        raise ValueError(
            f"{method}: expected an image tower, got the language model {backbone.spec}. "
            "Choose --backbone glyph, or a method that reads texts, such as prefix_tuning or lora."
        )


def build_method(
    config: Settings, backbone: "Backbone", kind: str = "method", open_teacher: "OpenTeacher | None" = None
) -> "Method":
    """Build a method (or a head) on a backbone.

    Args:
        config: its name and all constructor arguments but the backbone.
        kind: "method" or "head".
        open_teacher: builds the teacher of a method that has one; `vlprompt.experiments.learned.prompt` has one that
            reads runs.

    Raises:
        ValueError: where it needs another kind of backbone, or a teacher that nothing opens.
    """
    from vlprompt.core.teacher import TeacherSettings
    from vlprompt.core.towers import find_input_tower

    cls = resolve_class(kind, config["name"])
    arguments: Settings = {k: v for k, v in config.items() if k != "name"}
    for name, annotation in get_constructor_types(cls).items():
        if (backbone_kind := get_backbone_kind(name, annotation)) is not None:
            require_backbone_kind(config["name"], backbone_kind, backbone)
            arguments[name] = backbone if backbone_kind == "Clip" else find_input_tower(backbone)
        elif (part := get_nested_kind(annotation)) == "teacher":
            if open_teacher is None:
                raise ValueError(
                    f"method.{name}: expected a way to open a teacher, got none. Build {config['name']} by "
                    "vlprompt.experiments.learned.prompt.build_run_method."
                )
            arguments[name] = open_teacher(TeacherSettings(**arguments[name]), find_input_tower(backbone).device)
        elif part is not None:
            arguments[name] = build_method(arguments[name], backbone, part, open_teacher)
    return cls(**arguments)


def build_task(config: Settings) -> "Task":
    """Build a task from its name and constructor arguments; its data are opened when they are first needed."""
    cls = resolve_class("task", config["name"])
    return cast("Task", cls(**{k: v for k, v in config.items() if k != "name"}))


def is_adaptation_method(method: str) -> bool:
    """Return whether a method needs unlabelled images of another domain, so that no other task suits it."""
    return bool(method) and getattr(resolve_class("method", method), "needs_unlabelled", False) is True
