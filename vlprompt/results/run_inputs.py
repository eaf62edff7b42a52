"""Compare what a run stood on with what it would stand on now."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlprompt.runtime.file_index import get_content_hash

Inputs = dict[str, Any]  # sections of JSON values by name, as vlprompt.experiments.inputs describes them
SECTION_FORMATS = {
    "contents": "content of the {} items",
    "files": "content of the file {}",
    "classes": "class {}",
    "teacher_runs": "what {} has learned",
    "teachers": "the teacher {}",
}
DATA_NAMES = {"train": "names and labels of train", "test": "names and labels of test"}


MAX_WITNESSES = 32  # files, and folders, that a table compares with the disk


class ChangedInputsError(ValueError):
    """A run folder whose run stood on other data, files or weights than those of now."""


def list_differences(recorded: Inputs, current: Inputs) -> list[str]:
    """Return what differs between two descriptions of inputs, each by name with the old and the new value.

    A section that only one of them has is not compared, nor are the witnesses, which lie where they lie.
    """
    differences = list[str]()
    for section in (name for name in recorded if name in current and name != "witnesses"):
        old, new = recorded[section], current[section]
        if not isinstance(old, Mapping) or not isinstance(new, Mapping):
            differences += [] if old == new else [_format_difference(section, old, new)]
            continue
        for key in dict.fromkeys([*old, *new]):
            if old.get(key) != new.get(key):
                form = SECTION_FORMATS.get(section, DATA_NAMES.get(str(key), "{}"))
                name = form.format(key)
                differences.append(_format_difference(name, old.get(key), new.get(key)))
    return differences


def _format_difference(name: str, old: Any, new: Any) -> str:
    if isinstance(old, Sequence) and isinstance(new, Sequence) and not isinstance(old, str) and len(old) == len(new):
        index = next(i for i, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1])
        return _format_difference(f"{name}[{index}]", old[index], new[index])
    return f"{name}: {_shorten(old)} then, {_shorten(new)} now"


def _shorten(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"items", "hash"}:
        return f"{value['items']} ({value['hash'][:8]})"
    text = "none" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def choose_witnesses(files: Sequence[str]) -> dict[str, Any]:
    """Return some of the files with their content hashes, and some of their folders with their number of entries.

    Args:
        files: absolute paths; the first is always among those returned.
    """
    folders = list(dict.fromkeys(str(Path(file).parent) for file in files))
    return {
        "files": {file: get_content_hash(file) for file in _spread(files)},
        "folders": {folder: _count_entries(folder) for folder in _spread(folders)},
    }


def _spread(paths: Sequence[str]) -> Sequence[str]:
    return paths[:: -(-len(paths) // MAX_WITNESSES)] if paths else []


def _count_entries(folder: str) -> int:
    return sum(not path.name.startswith(".") for path in Path(folder).iterdir())


def find_changes(inputs: Inputs) -> list[str]:
    """Return what has visibly changed on this machine since a run: files of other content, folders of other size.

    Files and folders that are not here are no sign of a change.
    """
    witnesses, changes = inputs.get("witnesses", {}), list[str]()
    for file, content in witnesses.get("files", {}).items():
        if Path(file).is_file() and get_content_hash(file) != content:
            changes.append(f"{file} has other content")
    for folder, n_entries in witnesses.get("folders", {}).items():
        if Path(folder).is_dir() and (now := _count_entries(folder)) != n_entries:
            changes.append(f"{folder} had {n_entries} entries, has {now}")
    return changes
