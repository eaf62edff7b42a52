"""Recipes of a method: the command, what the comments say, and the settings."""

from dataclasses import dataclass
from pathlib import Path

from docs.markdown_text import escape, fenced
from docs.paths import CONFIGS_FOLDER, ROOT

OTHERS = ("preprocess", "reference")  # folders of configs/ that hold no recipes


@dataclass(frozen=True)
class Recipe:
    """One file of configs/.

    Args:
        path: below the repository.
        command: how it is run; "" for one that is laid over another for some backbones.
        notes: the rest of its comments: where the settings come from and what to expect.
        settings: its YAML without the comments at the top.
    """

    path: str
    command: str
    notes: str
    settings: str


def read_recipe(path: Path) -> Recipe:
    """Read one recipe; one that only changes another for some backbones has no command."""
    lines = path.read_text("utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    settings = "\n".join(line for line in lines if not line.startswith("#"))
    words = [line.lstrip("# ") for line in comments]
    command = words.pop(0) if words and words[0].startswith("vlprompt ") else ""
    return Recipe(str(path.relative_to(ROOT)), command, " ".join(words), settings.strip())


def find_recipes(method: str) -> list[Recipe]:
    """Return all recipes of a method, task by task, those of the embedded backbone last in each."""
    paths = [
        path
        for path in CONFIGS_FOLDER.rglob(f"{method}.yaml")
        if path.relative_to(CONFIGS_FOLDER).parts[0] not in OTHERS
    ]
    order = sorted(paths, key=lambda path: (path.relative_to(CONFIGS_FOLDER).parts[0], len(path.parts), str(path)))
    return [read_recipe(path) for path in order]


def _explain_overlay(path: str) -> str:
    return f"Laid over the recipe above it on backbones of the scheme `{path.split('/')[-2]}`."


def describe_recipes(method: str, root: str) -> list[str]:
    """Return the section of a method's page; `root` leads from the page to the repository."""
    recipes = find_recipes(method)
    if not recipes:
        return ["There is no recipe for it: its defaults are used.", ""]
    lines = ["The recipe of a task is used unless a file or an option says otherwise (`vlprompt run --help`).", ""]
    for recipe in recipes:
        lines += [f"### {recipe.path.removeprefix('configs/').removesuffix('.yaml')}", ""]
        lines += fenced("bash", recipe.command) if recipe.command else [_explain_overlay(recipe.path), ""]
        lines += [escape(recipe.notes), ""] if recipe.notes else []
        lines += fenced("yaml", recipe.settings) if recipe.settings else ["It sets nothing but the defaults.", ""]
        lines += [f"File: [{recipe.path}]({root}{recipe.path})", ""]
    return lines
