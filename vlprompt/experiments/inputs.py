"""What the numbers of a run stand on beside its configuration: data, class names, files and weights, by content."""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.core.batch import Split, Unlabelled
from vlprompt.core.class_names import as_class_name
from vlprompt.core.method import Method
from vlprompt.core.stage import Stage
from vlprompt.core.towers import find_input_tower
from vlprompt.experiments.learned.teacher import find_teachers, hash_teacher_runs
from vlprompt.layers.class_descriptions import find_description_use, is_description_file
from vlprompt.results.run_inputs import Inputs, choose_witnesses
from vlprompt.runtime.file_index import get_content_hash, get_file_index

if TYPE_CHECKING:
    from vlprompt.config.run_config import RunConfig
    from vlprompt.core.method import Method
    from vlprompt.core.towers import Backbone
    from vlprompt.tasks import Task


FILE_SETTINGS = ("descriptions",)  # arguments of methods that name files, whatever the files are called


def describe_inputs(
    task: "Task", config: "RunConfig", backbone: "Backbone | None" = None, method: "Method | None" = None
) -> Inputs:
    """Return what a run stands on, as JSON values by name.

    Every image and text that the run trains or tests on is hashed, by the index of files where it knows them.

    Args:
        task: on its data.
        config: the configuration of the run.
        backbone: None where it is not loaded.
        method: the method, whose teachers are opened; None where it is not built.

    Returns:
        data: what the task says of its data, with hashes of names and labels; classes: id -> name, template and words
        for it; contents: number and content hash of the
        items by their use; files: content hashes of the files that settings name; witnesses: some files and folders
        for `results.run_inputs.find_changes`; backbone: the key of a loaded one;
        teacher_runs: what the runs of teachers have learned; teachers: the keys of opened ones.

    Raises:
        ValueError: for data that can't be opened.
        OSError: for a file that can't be read.
    """
    data = {key: value for key, value in task.protocol.items() if key != "warnings"}
    hashes, files, classes = _hash_items(task.stages())
    if Path(str(config.task.get("dataset"))).expanduser().is_file():
        files.insert(0, str(Path(config.task["dataset"]).expanduser().absolute()))
    inputs = {
        "data": data,
        "classes": classes,
        "contents": {use: _combine(by_key.values()) for use, by_key in hashes.items()},
        "files": hash_named_files(config.to_dict()),
        "witnesses": choose_witnesses(files),
    }
    get_file_index().flush()
    if runs := hash_teacher_runs(config.method):
        inputs["teacher_runs"] = runs
    if teachers := {} if method is None else find_teachers(method):
        inputs["teachers"] = {setting: teacher.key for setting, teacher in teachers.items()}
    return inputs if backbone is None else {**inputs, "backbone": find_input_tower(backbone).key}


def _hash_items(stages: Iterator[Stage]) -> tuple[dict[str, dict[str, str]], list[str], dict[str, list[Any]]]:
    """Return a line with the content hash of each item by use and key, the paths of files, and all classes by id."""
    hashes, files, classes = dict[str, dict[str, str]](), list[str](), dict[str, list[Any]]()
    for stage in stages:
        for use, split in _iter_splits(stage):
            by_key = hashes.setdefault(use, {})
            classes |= {n.id: [str(n), n.template, n.words] for n in map(as_class_name, split.names)}
            for item in split.items:
                if item.key not in by_key:
                    by_key[item.key] = f"{item.name}\n{item.content_hash()}\n"
                    files += [] if (file := getattr(item, "file", None)) is None else [file]
    return hashes, files, classes


def _iter_splits(stage: Stage) -> Iterator[tuple[str, Split | Unlabelled]]:
    lesson = stage.lesson
    named = {"train": lesson.train, "val": lesson.val, "unlabelled": lesson.unlabelled}
    yield from ((use, split) for use, split in named.items() if split is not None and len(split))
    for tests in (stage.tests, stage.unknown_tests, stage.future_tests, stage.initial_tests):
        yield from (("test", split) for split in tests.values())


def _combine(lines: Iterable[str]) -> dict[str, Any]:
    """Return the number and the hash of all lines, whatever their order: seeds may draw it."""
    lines, digest = sorted(lines), blake2b(digest_size=16)
    for line in lines:
        digest.update(line.encode(errors="surrogatepass"))
    return {"items": len(lines), "hash": digest.hexdigest()}


def _find_source_file(method: str) -> str:
    """Return the file of a user's own method, module:Class; "" for a method of this package."""
    module, separator, _ = method.partition(":")
    spec = find_spec(module) if separator else None
    return "" if spec is None else spec.origin or ""


def describe_uses(method: Method) -> dict[str, Any]:
    """Return what a method uses beyond the images of its lessons, for the protocol of its result.

    Returns:
        uses: keys of `Method.uses`, files of class descriptions included; descriptions: content hash of each such file
            by its name; neither where there is none.
    """
    uses, hashes = {use for part in method.modules() for use in getattr(part, "uses", ())}, dict[str, str]()
    for path in _iter_description_files(method):
        if path.is_file():  # else it went during the run, which has read it
            uses.add(find_description_use(path))
            hashes[path.name] = get_content_hash(path)
    return {**({"uses": sorted(uses)} if uses else {}), **({"descriptions": hashes} if hashes else {})}


def _iter_description_files(method: Method) -> Iterator[Path]:
    for part in method.modules():
        template, descriptions = getattr(part, "template", None), getattr(part, "descriptions", None)
        choices = template if isinstance(template, list | tuple) else [template]
        paths: list[str] = [choice for choice in choices if is_description_file(choice)]
        paths += [descriptions] if isinstance(descriptions, str) else []
        yield from (Path(path).expanduser() for path in paths)


def hash_named_files(settings: Any, key: str = "") -> dict[str, str]:
    """Return the content hashes of files that settings name, by the key of the setting; datasets are compared apart."""
    if isinstance(settings, Mapping):
        parts = (hash_named_files(value, f"{key}.{name}".lstrip(".")) for name, value in settings.items())
        return {name: content for part in parts for name, content in part.items()}
    if isinstance(settings, list | tuple):
        parts = (hash_named_files(value, f"{key}.{i}") for i, value in enumerate(settings))
        return {name: content for part in parts for name, content in part.items()}
    if not isinstance(settings, str) or key.startswith("task."):
        return {}
    if key == "backbone":
        settings = next((settings.partition(mark)[2] for mark in ("@", "local-dir:", ":") if mark in settings), "")
    elif key == "method.name":
        settings = _find_source_file(settings)
    elif not Path(settings).suffix and key.rpartition(".")[2] not in FILE_SETTINGS:
        return {}  # a word that is the name of a file here by chance
    path = Path(settings).expanduser()
    try:
        is_named = bool(settings) and (path.is_file() or (key == "backbone" and path.is_dir()))
    except (OSError, ValueError):  # a text that is no path
        return {}
    return {key: get_content_hash(path)} if is_named else {}
