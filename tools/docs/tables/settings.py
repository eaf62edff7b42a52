"""The page of settings: one table of all keys that a configuration may have, and the environment variables."""

import dataclasses
from collections.abc import Iterator

from docs.arguments import REQUIRED, Argument, describe_arguments, format_type
from docs.docstrings import read_section
from docs.markdown_text import code, escape, fenced, page_title, table
from vlprompt import tasks
from vlprompt.config.build import resolve_class
from vlprompt.config.run_config import RunConfig
from vlprompt.data.images.preprocess_presets import PreprocessingFields
from vlprompt.engine.train_config import MINIMUM, POSITIVE, TrainConfig
from vlprompt.experiments.searches.space import SEARCH_OPTIONS
from vlprompt.runtime.errors import DEBUG_VARIABLE
from vlprompt.runtime.settings import CACHE_FOLDER_VARIABLE, CACHE_SIZE_VARIABLE, DATA_ROOT_VARIABLE

ENVIRONMENT = {
    DATA_ROOT_VARIABLE: ("./data", "the folder of the datasets' folders; the option --root goes before it"),
    CACHE_FOLDER_VARIABLE: (
        "the user's cache folder",
        "where features of frozen towers are kept, or none; the option --feature-cache goes before it",
    ),
    CACHE_SIZE_VARIABLE: ("10", "largest size of the feature cache, in GB of 10**9 bytes"),
    "VLPROMPT_TOKEN": ("", "the token of `vlprompt serve`; the option --token goes before it"),
    DEBUG_VARIABLE: ("", "set to anything, an error shows its traceback"),
    "VLPROMPT_GOLDEN": ("tests/golden", "the folder of golden vectors that the tests compare with"),
}
SEARCH_KEYS = {
    "seed": "seed of the search; default the first of the seeds",
    "seeds": "seeds of the final runs, where none are given",
    "lr_base_batch_size": "the batch size that the learning rates of the grid are for, from which they are scaled",
}
Row = tuple[str, str, str, str]  # key, type, default, description


def train_rows() -> Iterator[Row]:
    """Yield a row for each field of TrainConfig."""
    for argument in describe_arguments(TrainConfig):
        bound = f" At least {MINIMUM[argument.name]}." if argument.name in MINIMUM else ""
        bound = " Above 0." if argument.name in POSITIVE else bound
        description = argument.description.rstrip(".") + "." + bound
        yield f"train.{argument.name}", argument.type, argument.default, description


def run_rows() -> Iterator[Row]:
    """Yield a row for each part of a configuration that is one value."""
    defaults = {"backbone": "glyph", "seed": "1", "preprocess": "null"}
    descriptions = read_section(RunConfig.__doc__ or "")
    for field in dataclasses.fields(RunConfig):
        if field.name not in descriptions:
            raise ValueError(
                f"RunConfig.{field.name}: expected a description in the docstring, got none. Write it there."
            )
        if field.name in defaults:
            type_ = "a preset, or fields" if field.name == "preprocess" else format_type(field.type)
            yield field.name, type_, defaults[field.name], descriptions[field.name]
        elif field.name != "train":
            what = {"method": "the arguments of a method", "task": "the arguments of a task"}[field.name]
            yield f"{field.name}.name", "text", REQUIRED, f"which {field.name}; the other keys are {what}"


def task_rows() -> Iterator[Row]:
    """Yield a row for each different argument of the tasks, with the tasks that have it."""
    owners: dict[Argument, list[str]] = {}
    for name in tasks.find_classes():
        for argument in describe_arguments(resolve_class("task", name)):
            owners.setdefault(argument, []).append(name)
    for argument, names in sorted(owners.items(), key=lambda item: item[0].name):
        description = f"{argument.description.rstrip('.')}. Of {', '.join(names)}."
        yield f"task.{argument.name}", argument.type, argument.default, description


def preprocess_rows() -> Iterator[Row]:
    """Yield a row for each field of a preprocessing."""
    for name, field in PreprocessingFields.model_fields.items():
        yield f"preprocess.{name}", format_type(field.annotation), "the tower's own", field.description or ""


def search_rows() -> Iterator[Row]:
    """Yield a row for each key of a search."""
    yield (
        "search.KEY",
        "list",
        "the recipe's",
        "values to try for any setting, as search.train.lr=[0.01,0.001]; all lists are crossed",
    )
    for name in SEARCH_OPTIONS:
        yield f"search.{name}", "list[int]" if name == "seeds" else "int", "null", SEARCH_KEYS[name]


def list_settings() -> list[Row]:
    """Return all rows of the table, without the methods' own settings."""
    rows = [*run_rows(), *train_rows(), *task_rows(), *preprocess_rows(), *search_rows()]
    if unexplained := [row[0] for row in rows if not row[3].strip()]:
        raise ValueError(f"{unexplained[0]}: expected a description, got none. Write it where the setting is defined.")
    return rows


def build() -> str:
    """Return the page as Markdown."""
    lines = page_title(
        "Settings",
        "Every key of a configuration, but the arguments of methods and heads: those are on "
        "[the methods' pages](methods/index.md) and under [heads](heads.md). Later wins: recipe, `-c FILE`, options, "
        "`KEY=VALUE` ([configuration](../guides/configuration.md)).",
    )
    rows = [[code(key), code(type_), _show(default), escape(text)] for key, type_, default, text in list_settings()]
    lines += table(["key", "type", "default", "what it does"], rows)
    lines += ["## Environment variables", "", "No result depends on them.", ""]
    variables = [
        [code(name), code(default) if default else "not set", escape(text)]
        for name, (default, text) in ENVIRONMENT.items()
    ]
    lines += table(["variable", "default", "what it does"], variables)
    lines += fenced(
        "bash", "vlprompt run coop digits train.epochs=2 task.shots=4 'method.context_template={ctx} {name} {ctx}.'"
    )
    return "\n".join(lines)


def _show(default: str) -> str:
    return default if default in (REQUIRED, "the tower's own", "the recipe's") else code(default)
