"""List methods, tasks, datasets and backbones, and describe one method; files are read, nothing heavy is imported."""

import ast
from pathlib import Path

from vlprompt import methods, tasks
from vlprompt.runtime.errors import suggest_nearest

LISTS = ("methods", "tasks", "datasets", "backbones", "preprocess")
BACKBONE_TYPES = ("Clip", "Tower", "AnyTower", "VisionTower", "LanguageTower")


def list_entries(kind: str) -> list[str]:
    """Return one line for each entry of a kind; ValueError for an unknown kind."""
    if kind in ("methods", "tasks"):
        package = methods if kind == "methods" else tasks
        return [
            f"{name:16} {_read_docstring(_find_class_file(package, name)).splitlines()[0]}"
            for name in package.find_classes()
        ]
    if kind == "datasets":
        from vlprompt.data.cards import list_cards, load_card

        return [f"{name:26} {load_card(name).title}" for name in list_cards()] + [
            f"{'PATH':26} a folder of images with one sub-folder per class, or a .csv, .jsonl, .npz, .json or .yaml",
            f"{'':26} or of texts: a .jsonl, .csv or .tsv with text and label, prompt and response, words and tags, "
            "or messages, or a folder with such a train and test",
        ]
    if kind == "preprocess":
        from vlprompt.runtime.paths import find_configs_folder

        texts = {p.stem: p.read_text("utf-8") for p in sorted((find_configs_folder() / "preprocess").glob("*.yaml"))}
        heads = {
            name: " ".join(line[2:] for line in text.splitlines() if line[:1] == "#") for name, text in texts.items()
        }
        return [f"{name:14} {head.partition('. ')[0]}" for name, head in heads.items()]
    if kind == "backbones":
        from vlprompt.backbones.schemes import list_forms

        return [f"{form:27} {description}" for form, description in list_forms().items()]
    raise ValueError(f"list: expected {', '.join(LISTS)}, got {kind!r}; {suggest_nearest(kind, LISTS)}")


def describe_method(name: str) -> list[str]:
    """Return the header of a method's file, its class with arguments, and its recipes."""
    classes = methods.find_classes()
    if name not in classes:
        raise ValueError(f"method: expected a known name, got {name!r}; {suggest_nearest(name, list(classes))}")
    path = _find_class_file(methods, name)
    nodes = ast.parse(path.read_text("utf-8")).body
    cls = next(node for node in nodes if isinstance(node, ast.ClassDef) and node.name == classes[name])
    lines = [_read_docstring(path), "", f"{cls.name}: {ast.get_docstring(cls)}", ""]
    lines += ["Arguments (settings are written method.NAME=VALUE):", *_describe_arguments(cls)]
    return lines + _read_recipes(name)


def _describe_arguments(cls: ast.ClassDef) -> list[str]:
    """Describe the constructor's arguments but the backbone."""
    from vlprompt.config.sources import HEADS

    init = next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        return []
    arguments, lines = init.args.args[1:], []
    n_required = len(arguments) - len(init.args.defaults)
    defaults: list[ast.expr | None] = [None] * n_required + list(init.args.defaults)
    for argument, default in zip(arguments, defaults, strict=True):
        kind = ast.unparse(argument.annotation) if argument.annotation else "any"
        if kind == "Head" and default is None:
            lines.append(f"  {argument.arg}: Head = linear ({', '.join(HEADS)})")
        elif kind not in BACKBONE_TYPES:
            lines.append(f"  {argument.arg}: {kind}{'' if default is None else f' = {ast.unparse(default)}'}")
    return lines


def _read_recipes(method: str) -> list[str]:
    from vlprompt.runtime.paths import find_configs_folder

    folder, lines = find_configs_folder(), []
    for path in sorted(path for task in tasks.find_classes() for path in (folder / task).rglob(f"{method}.yaml")):
        lines += ["", f"Recipe configs/{path.relative_to(folder)}:", path.read_text("utf-8").rstrip()]
    return lines


def _find_class_file(package: object, name: str) -> Path:
    return Path(str(package.__file__)).parent / f"{name}.py"  # type: ignore[attr-defined]


def _read_docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
