"""Restore the method of a finished run, for predictions, tests on other data and export."""

from pathlib import Path
from typing import Any

from vlprompt.backbones import load_backbone
from vlprompt.backbones.feature_cache import attach_disk_cache
from vlprompt.config.build import build_method
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName, Names, as_class_name
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import find_input_tower, find_preprocessing, with_preprocessing
from vlprompt.data.images.preprocess_presets import resolve_preprocessing
from vlprompt.results.run_folder import RunFolder
from vlprompt.runtime.settings import SETTINGS


def restore_method(folder: Path, backbone: str | None = None, device: str | None = None) -> tuple[Method, Names]:
    """Return the method of a finished run with its learned state, and the classes it was trained on.

    Args:
        folder: of the run.
        backbone: where its backbone is now; default that of the run.
        device: as `load` takes it.

    Raises:
        ValueError: when the run is not finished, the backbone has other weights, or the state does not fit the method.
    """
    state, metadata = RunFolder(folder).read_learned_state()
    config = metadata["config"]
    spec = backbone or config["backbone"]
    # its notes were shown with the run's result
    frozen = attach_disk_cache(load_backbone(spec, device), SETTINGS.get_cache_folder())
    if "preprocess" in config:
        frozen = with_preprocessing(frozen, resolve_preprocessing(config["preprocess"], find_preprocessing(frozen)))
    tower = find_input_tower(frozen)
    _require_same_backbone(tower.key, metadata["backbone_key"], spec, folder)
    lessons = _read_lessons(metadata)
    method = build_method(config["method"], frozen)
    try:
        method.restore(lessons, {name: tensor.to(tower.device) for name, tensor in state.items()})
    except RuntimeError as error:
        cause = " ".join(str(error).split())
        raise ValueError(
            f"{str(folder)!r}: expected a learned state of the method {config['method']['name']}, got an error on "
            f"loading it: {cause}. Train it again with this version."
        ) from error
    by_id = {name.id: name for lesson in lessons for name in map(as_class_name, lesson.train.names)}
    return method.eval(), tuple(by_id.values())


def _require_same_backbone(key: str, trained_key: str, spec: str, folder: Path) -> None:
    """Raise ValueError unless a backbone has the weights and the computation that a run was trained on.

    Args:
        key: of the backbone.
        trained_key: of the run's.
        spec: the backbone's, for the message.
        folder: of the run.
    """
    weights, _, computation = key.partition("#")[2].partition(".")
    trained_spec, _, identity = trained_key.partition("#")
    trained_weights, _, trained_computation = identity.partition(".")
    if weights != trained_weights:
        raise ValueError(
            f"--backbone: expected the weights that {str(folder)!r} was trained on ({trained_key}), got "
            f"{spec} with other weights ({key}). Name the right ones by --backbone."
        )
    if computation != trained_computation:
        raise ValueError(
            f"--backbone: expected the architecture, activation, image size and preprocessing that {str(folder)!r} was "
            f"trained on ({trained_spec}), got {spec}, which has the same weights but differs in these. Name the same "
            "model before the weights' file by --backbone."
        )


def _read_lessons(metadata: dict[str, Any]) -> list[Lesson]:
    """Return the lessons that the state was learned from, without their items."""
    stream = {key: metadata[key] for key in ("total", "has_task_boundaries") if key in metadata}
    names_by_lesson = [tuple(ClassName(*name) for name in names) for names in metadata["lessons"]]
    domains_by_lesson = metadata.get("domains", [()] * len(names_by_lesson))
    return [
        Lesson(Split((), (), names), index=index, domains=tuple(domains), **stream)
        for index, (names, domains) in enumerate(zip(names_by_lesson, domains_by_lesson, strict=True))
    ]
