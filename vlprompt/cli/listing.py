"""List methods, tasks, datasets and backbones, and describe one method; files are read, nothing heavy is imported."""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlprompt import methods, tasks
from vlprompt.runtime.errors import suggest_nearest

LISTS = ("methods", "tasks", "datasets", "backbones", "preprocess")
BACKBONE_TYPES = ("Clip", "Tower", "AnyTower", "VisionTower", "LanguageTower")
NEEDS = {  # annotation of a constructor's argument -> what the method needs; in the order in which groups are listed
    "Clip": "a CLIP",
    "Method": "another method",
    "TowerMethod[VisionTower]": "another method",
    "VisionTower": "an image tower",
    "AnyTower": "an image tower or a language model",
    "LanguageTower": "a language model",
}
DEFAULT_USES = {  # what a method whose file says nothing else is for, by what it needs
    "a CLIP": "few-shot, base to new, transfer",
    "another method": "as the method inside",
    "an image tower": "few-shot, VTAB",
    "an image tower or a language model": "few-shot, VTAB, text",
    "a language model": "text",
}
UNLABELLED_USE = "unlabelled images, other domains"
USE_LINE = re.compile(r"\bUse:\s+([^.]+)\.")


@dataclass(frozen=True)
class MethodEntry:
    """What a method's file says about it.

    Args:
        name: on the command line ("coop").
        title: the paper's name of it ("CoOp").
        citation: the first line of the file.
        idea: the first line of the class, one sentence.
        needs: what it is built on, one of `NEEDS`, several joined by " and ".
        use: what it is for.
    """

    name: str
    title: str
    citation: str
    idea: str
    needs: str
    use: str


@dataclass(frozen=True)
class MethodGroup:
    """Methods that need the same and are for the same."""

    needs: str
    use: str
    methods: tuple[MethodEntry, ...]


def group_methods() -> list[MethodGroup]:
    """Group all methods by what they need and what they are for; read from their files, none is imported.

    What a method needs follows from the annotations of its constructor (or of the class that it inherits it from). What
    it is for follows from that, from `needs_unlabelled`, or from "Use: ..." in the header of its file.
    """
    groups: dict[tuple[str, str], list[MethodEntry]] = {}
    for name, class_name in methods.find_classes().items():
        entry = _read_method(name, class_name)
        groups.setdefault((entry.needs, entry.use), []).append(entry)
    needs = list(NEEDS.values())
    rank = {
        key: (needs.index(key[0]) if key[0] in needs else len(needs), key[1] != DEFAULT_USES.get(key[0]), key[1])
        for key in groups
    }
    return [MethodGroup(*key, tuple(groups[key])) for key in sorted(groups, key=rank.__getitem__)]


def list_entries(kind: str) -> list[str]:
    """Return the lines for the entries of a kind; ValueError for an unknown kind."""
    if kind == "methods":
        return _list_methods()
    if kind == "tasks":
        return [
            f"{name:16} {(ast.get_docstring(_parse(_find_class_file(tasks, name))) or '').splitlines()[0]}"
            for name in tasks.find_classes()
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


def _list_methods() -> list[str]:
    lines: list[str] = []
    for group in group_methods():
        lines += [f"{'Around' if group.needs == NEEDS['Method'] else 'On'} {group.needs}: {group.use}"]
        lines += [*(f"  {entry.name:16} {entry.title}: {entry.idea}" for entry in group.methods), ""]
    return [
        *lines,
        "An image tower may be that of a CLIP. `vlprompt show NAME` describes a method, its settings and its recipes.",
    ]


def describe_method(name: str) -> list[str]:
    """Return the header of a method's file, its class with arguments, and its recipes."""
    classes = methods.find_classes()
    if name not in classes:
        raise ValueError(f"method: expected a known name, got {name!r}; {suggest_nearest(name, list(classes))}")
    path = _find_class_file(methods, name)
    tree = _parse(path)
    cls = _find_class(tree, classes[name])
    lines = [ast.get_docstring(tree) or "", "", f"{cls.name}: {ast.get_docstring(cls)}", ""]
    lines += ["Arguments (settings are written method.NAME=VALUE):", *_describe_arguments(cls)]
    return lines + _read_recipes(name)


@cache
def _read_method(name: str, class_name: str) -> MethodEntry:
    tree = _parse(_find_class_file(methods, name))
    header, cls = ast.get_docstring(tree) or "", _find_class(tree, class_name)
    citation, idea = header.partition("\n")[0], (ast.get_docstring(cls) or "").partition("\n")[0]
    needs = " and ".join(_find_needs(tree, cls)) or "nothing"
    if use := USE_LINE.search(header):
        purpose = " ".join(use[1].split())
    elif _is_set(cls, "needs_unlabelled"):
        purpose = UNLABELLED_USE
    else:
        purpose = DEFAULT_USES.get(needs, "any task")
    return MethodEntry(name, citation.partition(":")[0], citation, idea, needs, purpose)


def _find_needs(tree: ast.Module, cls: ast.ClassDef) -> list[str]:
    """Return what the arguments of a constructor need, inherited from another method's file where there is none."""
    init = _find_constructor(cls)
    if init is not None:
        kinds = {ast.unparse(argument.annotation) for argument in init.args.args if argument.annotation}
        return [need for kind, need in NEEDS.items() if kind in kinds]
    bases = {ast.unparse(base) for base in cls.bases}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{methods.__name__}."):
            for base in bases & {alias.name for alias in node.names}:
                other = _parse(_find_class_file(methods, str(node.module).rpartition(".")[2]))
                return _find_needs(other, _find_class(other, base))
    return []


def _find_class(tree: ast.Module, name: str) -> ast.ClassDef:
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def _find_constructor(cls: ast.ClassDef) -> ast.FunctionDef | None:
    return next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)


def _is_set(cls: ast.ClassDef, attribute: str) -> bool:
    """Return whether a class sets an attribute to True."""
    return any(isinstance(n, ast.Assign) and ast.unparse(n) == f"{attribute} = True" for n in cls.body)


def _describe_arguments(cls: ast.ClassDef) -> list[str]:
    """Describe the constructor's arguments but the backbone."""
    from vlprompt.config.sources import HEADS

    init = _find_constructor(cls)
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


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))
