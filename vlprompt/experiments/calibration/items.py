"""The items on which a decision is chosen: validation items of known classes, and items of unknown ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, cast

from vlprompt.config.build import build_task
from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, class_ids, normalize_name
from vlprompt.core.stage import Lesson
from vlprompt.data.dataset import Data
from vlprompt.data.loading import resolve_dataset
from vlprompt.experiments.learned.state import LearnedState
from vlprompt.results.run_folder import RunFolder
from vlprompt.tasks.open_set import find_alike
from vlprompt.tasks.text import Text

MAX_NAMED_CLASSES = 5


@dataclass(frozen=True)
class ChosenItems:
    """Items that something is chosen on.

    Args:
        split: the items.
        dataset: the name of their dataset.
        part: which of its splits they are.
        note: what could not be checked, "" for nothing.
    """

    split: Split
    dataset: str
    part: str
    note: str = ""

    def describe(self) -> dict[str, Any]:
        """Return the facts about them for a result."""
        facts = {"dataset": self.dataset, "part": self.part, "items": len(self.split), "hash": self.split.hash()}
        return facts | ({"note": self.note} if self.note else {})


def open_validation(state: LearnedState, names: Names, dataset: str | None, skip_broken: bool = False) -> ChosenItems:
    """Return the validation items of a learned prompt, labelled among its classes.

    Args:
        state: of the prompt.
        names: its classes.
        dataset: a dataset whose validation split is taken, of the one that the prompt was trained on the items of its
            classes; None for the validation items of its task, a few shots perhaps.
        skip_broken: leave out what can't be read.

    Raises:
        ValueError: where there are none, where some were trained on, or where they have other classes.
    """
    note = ""
    if dataset is None:
        lessons, name = _rebuild_lessons(state, skip_broken), str(state.config["task"]["dataset"])
        split = _join([lesson.val for lesson in lessons if lesson.val is not None])
    else:
        name, split, _ = open_splits(state.config["task"], dataset, skip_broken)
        if split is not None and dataset == state.config["task"].get("dataset"):
            split = select_known(split, names)
        try:
            lessons = _rebuild_lessons(state, skip_broken)
        except (OSError, ValueError) as error:  # a model folder travels without the data that it was trained on
            lessons, note = [], f"not compared with the items that the prompt was trained on: {error}"
    if split is None or not len(split):
        raise ValueError(
            f"validation: expected validation items in {name!r}, got none. Name another dataset by --validation."
        )
    _require_unseen(split, lessons)
    return ChosenItems(relabel(split, names, name), name, "val", note)


def open_unknown(
    task: Mapping[str, Any], names: Names, dataset: str, part: str, skip_broken: bool = False
) -> ChosenItems:
    """Return items of classes that a prompt does not know, as the task open_set chooses them.

    Classes of another dataset whose names are like known ones are left out and named in the note, unless the prompt's
    task has `keep_alike`.

    Args:
        task: the settings of the prompt's task.
        names: the classes that are known.
        dataset: where the items are from. Of the dataset that the prompt was trained on, those of its other classes.
        part: "test", or "val", which a dataset without validation items lacks: then it is "test" too.
        skip_broken: leave out what can't be read.

    Raises:
        ValueError: for a dataset that has known classes, or no others.
    """
    name, val, test = open_splits(task, dataset, skip_broken)
    split, part = (val, part) if part == "val" and val is not None and len(val) else (test, "test")
    if dataset == task.get("dataset"):
        known = set(class_ids(names))
        split = split.select_classes([k for k, i in enumerate(class_ids(split.names)) if i not in known])
    shared = {normalize_name(text) for text in names} & {normalize_name(text) for text in split.names}
    if shared or not len(split):
        classes = quote_classes(sorted(shared)) if shared else "no items of other classes"
        raise ValueError(
            f"--unknown: expected items of classes that are not known, got {classes} in {dataset!r}. Name a dataset "
            "whose classes are all others."
        )
    alike = [] if dataset == task.get("dataset") or task.get("keep_alike") else find_alike(names, split.names)
    if not alike:
        return ChosenItems(split, name, part)
    left_out = quote_classes([str(split.names[label]) for label in alike])
    split = split.select_classes([label for label in range(len(split.names)) if label not in alike])
    if not len(split):
        raise ValueError(
            f"--unknown: expected items of classes that are not known, got {dataset!r}, whose classes all have names "
            f"like known ones ({left_out}). Name another dataset."
        )
    return ChosenItems(split, name, part, f"left out of {name}, as their names are like known ones: {left_out}")


def open_splits(
    task: Mapping[str, Any], dataset: str | Data, skip_broken: bool, layout: str | None = None
) -> tuple[str, Split | None, Split]:
    """Return the name, the validation and the test split of a dataset, texts with its own templates."""
    if task["name"] == "text":
        settings = {"dataset": dataset, "prompt_template": None, "plain_template": None, "shots": None}
        texts = cast(Text, build_task({**task, **settings, "skip_broken": skip_broken}))
        return texts.data.name, texts.lesson.val, texts.test
    data = resolve_dataset(dataset, None, skip_broken, layout=layout)
    return data.name, data.val, data.test


def select_known(split: Split, names: Names) -> Split:
    """Return the items of those classes of a split that are among these names, by id."""
    known = set(class_ids(names))
    return split.select_classes([k for k, i in enumerate(class_ids(split.names)) if i in known])


def relabel(split: Split, names: Names, dataset: str) -> Split:
    """Return a split labelled among these classes, found by id or by name; ValueError for items of others."""
    labels = {str(name): k for k, name in enumerate(names)} | {i: k for k, i in enumerate(class_ids(names))}
    found = [labels.get(i, labels.get(str(name))) for name, i in zip(split.names, class_ids(split.names), strict=True)]
    if others := sorted({str(split.names[label]) for label in split.labels if found[label] is None}):
        raise ValueError(
            f"validation: expected items of the classes that were learned ({quote_classes(names)}), got "
            f"{quote_classes(others)} in {dataset!r}. Name a dataset with the same classes by --validation."
        )
    return replace(split, names=names, labels=tuple(cast(int, found[label]) for label in split.labels))


def _join(splits: Sequence[Split]) -> Split | None:
    return reduce(Split.concat, splits) if splits else None


def _rebuild_lessons(state: LearnedState, skip_broken: bool) -> list[Lesson]:
    """Return the lessons that a prompt was trained on, with their items; ValueError if the data are others now."""
    task = build_task({**state.config["task"], "skip_broken": skip_broken})
    lessons = [stage.lesson for stage in task.stages()]
    folder = RunFolder(Path(state.source))
    result = folder.read_result() if Path(state.source).is_dir() else None
    trained_on, present = (None if result is None else result.protocol.get("train")), task.protocol.get("train")
    if trained_on is not None and trained_on != present:
        raise ValueError(
            f"{state.source!r}: expected the data that it was trained on (hash {trained_on}), got others ({present}). "
            "Restore them, or train again."
        )
    return lessons


def _require_unseen(split: Split, lessons: Sequence[Lesson]) -> None:
    """Raise ValueError for validation items with the same content as some that were trained on."""
    trained_on = {item.content_hash() for lesson in lessons for item in lesson.train.items}
    if seen := [item for item in split.items if item.content_hash() in trained_on]:
        raise ValueError(
            f"validation: expected items that were not trained on, got {len(seen)} of {len(split)} that were, such as "
            f"{seen[0].name!r}. Name others by --validation."
        )


def require_other_items(known: Split, unknown: ChosenItems) -> None:
    """Raise ValueError for unknown items with the same content as known ones, whatever their classes are called."""
    contents = {item.content_hash() for item in known.items}
    # an item whose content can't be hashed has its name instead, which another dataset may have too
    if shared := [item for item in unknown.split.items if item.name != item.content_hash() in contents]:
        raise ValueError(
            f"--unknown: expected other items than the known ones, got {len(shared)} of {len(unknown.split)} that are "
            f"among them, such as {shared[0].name!r} of {unknown.dataset!r}. Take them out of one of the datasets."
        )


def quote_classes(names: Sequence[str]) -> str:
    return ", ".join(repr(str(name)) for name in names[:MAX_NAMED_CLASSES]) + " ..." * (len(names) > MAX_NAMED_CLASSES)
