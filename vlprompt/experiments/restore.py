"""Using what a run has learned: predictions on image files, tests on other datasets."""

from pathlib import Path

from vlprompt.backbones import opened
from vlprompt.backbones.feature_cache import shelved, usual
from vlprompt.config.build import build_method
from vlprompt.core.batch import Split
from vlprompt.core.class_names import Name, Names, named
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import look_of, seen, tower_of
from vlprompt.data.images.preprocess_presets import look
from vlprompt.results.run_folder import Folder


def restored(folder: Path, backbone: str | None = None, device: str | None = None) -> tuple[Method, Names]:
    """The method of a finished run, with what it has learned, and the classes it was trained on.

    ValueError when the run is not finished, when the backbone's weights are not those it was trained with, or when the
    saved state does not fit the method.
    """
    state, told = Folder(folder).prompt()
    config = told["config"]
    frozen = shelved(opened(backbone or config["backbone"], device), usual())  # the result has told its notes
    if "look" in config:
        frozen = seen(frozen, look(config["look"], look_of(frozen)))
    key, where = tower_of(frozen).key, tower_of(frozen).device
    if key.partition("#")[2] != told["backbone_key"].partition("#")[2]:
        raise ValueError(
            f"the prompt in {str(folder)!r} was learned on {told['backbone_key']}, "
            f"but {backbone or config['backbone']} holds other weights ({key}); "
            "name the right ones by --backbone"
        )
    order = {key: told[key] for key in ("total", "announced") if key in told}
    every = told["lessons"] if "lessons" in told else [told["names"]]  # runs from before there were streams
    classes = [tuple(Name(*name) for name in names) for names in every]
    domains = told.get("domains", [()] * len(classes))
    lessons = [Lesson(Split((), (), names), index=i, domains=tuple(of), **order)
               for i, (names, of) in enumerate(zip(classes, domains, strict=True))]  # fmt: skip
    names = tuple({n.id: n for lesson in lessons for n in map(named, lesson.train.names)}.values())
    method = build_method(config["method"], frozen)
    try:
        method.restore(lessons, {k: v.to(where) for k, v in state.items()})
    except RuntimeError as error:
        cause = " ".join(str(error).split())
        raise ValueError(
            f"the learned state in {str(folder)!r} does not fit the method {config['method']['name']}: {cause}"
        ) from error
    return method.eval(), names
