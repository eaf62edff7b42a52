"""What a method stands on: a CLIP, an image tower alone, or a language model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from vlprompt.core.images import Look
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.stage import Stage
from vlprompt.core.texts import Passage, Passages

HELD = {"hf": "fp32", "hf-bf16": "bf16", "hf-int8": "int8", "hf-nf4": "nf4"}  # how a spec wants the weights held


@runtime_checkable
class Tower(Protocol):
    """A frozen network that takes a Prompt; not a Module, so that it can't be trained, saved or moved by mistake."""

    dim: int
    depth: int
    heads: int
    head_dim: int
    width: int  # E, of what it reads out
    key: str  # tells these weights from others
    device: torch.device

    def __call__(self, inputs: Any, /, prompt: Prompt = NOTHING, read: str = "pooled") -> Tensor: ...
    def sites(self, *names: str) -> dict[str, tuple[int, int]]: ...


class TextTower(Tower, Protocol):
    def context(
        self, n: int | None = None, init: str | None = None, generator: torch.Generator | None = None
    ) -> Tensor: ...


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


@runtime_checkable
class LanguageTower(Tower, Protocol):
    """A tower that reads passages.

    Called with read="pooled" it gives features (B, E); "mask" the states (B, E) at the answer's place; "response" the
    states (R, E) before each token of all responses, one after the other; "words" the states (R, E) of the first token
    of each word. States are what the model's own head reads, before the map into the vocabulary.
    """

    kind: Literal["causal", "encoder", "seq2seq"]
    base: str  # how the frozen weights are held: fp32, bf16, int8 or nf4
    layers: tuple[int | str, ...]  # where a prefix may stand
    biases: frozenset[str]  # the sites whose maps have one
    spec: str  # what `load` was asked for
    size: int  # frozen parameters
    room: int | None  # positions, None where there is no bound
    notes: dict[str, str]  # what a result tells of it; grows where texts are cut
    checkpointing: bool  # whether what a layer made is made again going back, instead of being kept

    def spelled(self, words: Sequence[str], template: str | None = None) -> list[list[int]]: ...  # tokens of answers
    def unembed(self, ids: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None]: ...  # rows of the vocabulary
    def vocabulary(self, states: Tensor, ids: Sequence[int] | None = None) -> Tensor: ...  # (R, E) -> logits (R, V)
    def targets(self, inputs: Passages, prompt: Prompt = NOTHING) -> list[list[int]]: ...  # the tokens of each response
    def embedded(self, text: str) -> Tensor: ...  # the embeddings (N, D) of a text's tokens
    def drawn(self, n: int, generator: Generator) -> Tensor: ...  # the embeddings (n, D) of random words
    def past(
        self, text: str, prompt: Prompt = NOTHING, after: bool = False
    ) -> Prompt: ...  # a text that everyone has read, as a prefix; after: behind another such
    def generate(self, inputs: Passages, prompt: Prompt = NOTHING, **settings: Any) -> list[str]: ...
    def merged(self, prompt: Prompt) -> "LanguageTower": ...
    def adapted(self, config: Mapping[str, Any], seed: int) -> "Adapted": ...  # by PEFT's configuration
    def save(self, prompt: Prompt, folder: Path, told: Mapping[str, Any]) -> None: ...  # as PEFT's files
    def save_merged(self, prompt: Prompt, folder: Path) -> None: ...  # the whole model, with a prompt's parts in it
    def copy(self) -> nn.Module: ...


class Adapted(Protocol):
    """A language model with an adapter of PEFT: what is asked, what is trained, and what else a resume needs."""

    @property
    def tower(self) -> LanguageTower: ...
    @property
    def trained(self) -> Mapping[str, nn.Parameter]: ...
    @property
    def state(self) -> Mapping[str, Tensor]: ...
    def prompt(self) -> Prompt: ...  # what goes into the tower, of the types that have a prompt
    def train(self, mode: bool) -> None: ...  # its dropout
    def penalty(self) -> Tensor | None: ...  # a term of the loss
    def stepped(self, step: int, total: int) -> None: ...  # after each step of the optimizer, from 1
    def save(self, folder: Path, told: Mapping[str, Any]) -> None: ...  # in PEFT's own files
    def save_merged(self, folder: Path) -> None: ...  # the whole model, with the adapter in its weights


@dataclass(frozen=True)
class Clip:
    """Two towers into one space. Features leave them un-normalised; a norm is taken here and nowhere else."""

    image: Tower
    text: TextTower
    scale: float  # exp of the learned log temperature
    spec: str  # what `load` was asked for
    bias: float = 0.0  # what sigmoid losses (SigLIP) add to every logit; no ranking or softmax sees it
    size: int = 0  # frozen parameters of both towers

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def device(self) -> torch.device:
        return self.image.device

    @staticmethod
    def unit(x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)

    def logits(self, image: Tensor, text: Tensor, scale: float | None = None) -> Tensor:
        """image (B, E), text (C, E) or (B, C, E), normalised here -> scaled cosines (B, C).

        The bias belongs to the learned scale: it is added unless another scale is asked for.
        """
        bias, scale = (self.bias, self.scale) if scale is None else (0.0, scale)
        image, text = self.unit(image), self.unit(text)
        logits = scale * (image @ text.T if text.ndim == 2 else (text @ image[..., None])[..., 0])
        return logits + bias if bias else logits


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
