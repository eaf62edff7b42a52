"""What a method stands on: a CLIP, an image tower alone, or a language model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from vlprompt.language import LanguageTower
from vlprompt.passages import Passage
from vlprompt.prompt import Prompt
from vlprompt.stage import Look, Stage
from vlprompt.tower import Clip, Tower


@runtime_checkable
class VisionTower(Tower, Protocol):
    """A tower that reads images."""

    look: Look
    asked: bool  # whether the look was asked for, instead of the one that its weights were trained with
    spec: str  # what `load` was asked for
    size: int  # frozen parameters
    notes: Mapping[str, str]  # what a result tells of how the weights were made to fit
    special: int  # class and register tokens, the rows before the patches
    grid: tuple[int, int]  # of patches
    positions: Tensor  # (S + N, D), added to special tokens and patches; empty where there are none to add

    def at(self, look: Look) -> "VisionTower": ...
    def merged(self, prompt: Prompt) -> "VisionTower": ...
    def cut(self, k: int) -> "tuple[VisionTower, nn.Module]": ...
    def copy(self) -> nn.Module: ...


AnyTower = VisionTower | LanguageTower  # what a method takes that does not mind what it reads
Backbone = Clip | AnyTower


def tower_of(backbone: Backbone) -> AnyTower:
    """The tower that reads the inputs: of a CLIP that of its images."""
    return cast(VisionTower, backbone.image) if isinstance(backbone, Clip) else backbone


def kept_of(backbone: Backbone | None) -> Any:
    """What its tower keeps of the features that it made, with `counts` and `flush()`; None where it keeps nothing."""
    return None if backbone is None else getattr(tower_of(backbone), "kept", None)


def look_of(backbone: Backbone) -> Look:
    """How its images are looked at; ValueError for a language model."""
    tower = tower_of(backbone)
    if isinstance(tower, LanguageTower):
        raise ValueError(f"{tower.spec} reads texts and looks at no images: leave `look` out")
    return tower.look


def seen(backbone: Backbone, look: Look) -> Backbone:
    """The backbone with another look at its images; ValueError for a size that its image tower can't take."""
    look_of(backbone)
    image = cast(VisionTower, tower_of(backbone)).at(look)
    return replace(backbone, image=image) if isinstance(backbone, Clip) else image


def fits(backbone: Backbone | None, stage: Stage) -> None:
    """ValueError for texts before a tower that looks at images, and for images before one that reads."""
    shown = [item for split in (stage.lesson.train, *stage.tests.values()) for item in split.items[:1]]
    texts, reads = any(isinstance(item, Passage) for item in shown), isinstance(backbone, LanguageTower)
    if backbone is None or not shown or texts == reads:
        return
    what, remedy = ("texts", "hf:FOLDER or hf:OWNER/NAME") if texts else ("images", "glyph or open_clip:NAME/TAG")
    kind = "a language model" if reads else "a tower of images"
    raise ValueError(f"the dataset has {what}, and {backbone.spec} is {kind}: take --backbone {remedy}, or other data")
