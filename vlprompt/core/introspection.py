"""What a method holds, and how its towers compute."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from vlprompt.core.compute_options import PLAINLY, How
from vlprompt.core.towers import Backbone, Clip, LanguageTower, Tower, VisionTower
from vlprompt.runtime.memory import give_back


@contextmanager
def computed(method: nn.Module, how: How) -> Iterator[None]:
    """The towers of a method compute in this way while this lasts; ValueError where none of them can."""
    towers = _towers(method) if how != PLAINLY else []
    speech = [t for t in towers if isinstance(t, LanguageTower)]
    walked = [t for t in towers if t not in speech and t.depth]
    texts = [t for t in walked if not isinstance(t, VisionTower)]
    for asked, able, what in ((how.checkpointing, walked or speech, "checkpointing"), (how.compile, walked, "compile"),
                              (how.chunk, texts, "chunk")):  # fmt: skip
        if asked and not able:
            whose = "the texts of a CLIP" if what == "chunk" else "towers that are walked block by block"
            raise ValueError(f"train.{what} is for {whose}, and {type(method).__name__} stands on none: leave it out")
    if how.checkpointing or how.chunk:
        give_back()
    try:
        for tower in walked:
            tower.how = how
        for tower in speech:
            tower.checkpointing = how.checkpointing
        yield
    finally:
        for tower in walked:
            tower.how = PLAINLY
        for tower in speech:
            tower.checkpointing = False


def _towers(method: nn.Module) -> list[Any]:
    """The towers that a method holds, each once, but such as can only be used as they are."""
    every = (t for t in parts_held(method) if isinstance(t, LanguageTower) or hasattr(t, "how"))
    return list({id(t): t for t in every}.values())


def parts_held(method: nn.Module) -> Iterator[Any]:
    """As `held`, with both towers in place of a CLIP."""
    return (t for value in held(method) for t in ((value.image, value.text) if isinstance(value, Clip) else (value,)))


def held(method: nn.Module) -> Iterator[Any]:
    """All that its parts store and that is no Module of its own: backbones, settings."""
    return (value for part in method.modules() for value in vars(part).values())


def clip_of(method: nn.Module) -> Clip | None:
    """The CLIP that a method holds, or what is inside it."""
    return next((value for value in held(method) if isinstance(value, Clip)), None)


def backbone_of(method: nn.Module) -> Backbone | None:
    """The CLIP that a method holds, or what is inside it; where there is none, its image tower or language model."""
    kinds = (VisionTower, LanguageTower)
    return clip_of(method) or next((value for value in held(method) if isinstance(value, kinds)), None)


def kept_of(method: nn.Module) -> list[Any]:
    """Where the towers of a method keep features, each once, in an order that is the same in every process."""
    found = (vars(tower).get("kept") for tower in parts_held(method) if isinstance(tower, Tower))
    return list({id(kept): kept for kept in found if kept is not None}.values())
