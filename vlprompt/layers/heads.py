"""Readers: what comes out. They turn features into logits over the names that are asked for."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.class_names import Names, ids
from vlprompt.core.head import Reader
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import Template, hand
from vlprompt.runtime.errors import UnknownClass


class Columns(Reader):
    """One row of weights (C, E) per class that it has met; the names asked for choose the rows.

    New ones come with every lesson that brings new ids.
    """

    weight: Tensor
    ids: Names = ()

    def new(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Initial values of the parameters by name, for (new classes, width)."""
        raise NotImplementedError("Columns say what a new class begins with")

    def begin(self, lesson: Lesson, generator: torch.Generator, width: int, device: torch.device) -> None:
        known = self.ids if lesson.index else ()
        new = [i for i in ids(lesson.train.names) if i not in known]
        for name, value in self.new((len(new), width), generator).items():
            old = [getattr(self, name).detach()] if known else []
            setattr(self, name, nn.Parameter(torch.cat([*old, value.to(device)])))
        self.ids = (*known, *new)

    def places(self, names: Names) -> Tensor:
        """The rows (C,) of these names; ValueError for a class it never met."""
        return columns(self.ids, names, f"a {type(self).__name__.lower()} head").to(self.weight.device)

    def fixed(self, names: Names) -> Tensor | slice:
        """The rows of these names; a slice where they are all in order, which then are not copied at each step."""
        found = self.places(names)
        return slice(None) if found.tolist() == list(range(len(self.ids))) else found


class Linear(Columns):
    """A linear head; its bias is not decayed.

    std: of the initial weights, or "kaiming" for sqrt(2 / C), the fan-out of VPT's head (arXiv:2203.12119); start: of
    the biases, -4.595 = -log(99) in VPT.
    """

    bias: Tensor

    def __init__(self, std: float | Literal["kaiming"] = 0.01, start: float = 0.0):
        super().__init__()
        self.std, self.start = std, start

    def new(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        std = self.std if isinstance(self.std, float | int) else math.sqrt(2 / max(shape[0], 1))
        return {"weight": torch.randn(shape, generator=generator) * std, "bias": torch.full(shape[:1], self.start)}

    def forward(self, features: Tensor, prepared: Tensor | slice) -> Tensor:
        return F.linear(features, self.weight[prepared], self.bias[prepared])


class Cosine(Columns):
    """Cosines to one vector per class, times a scale that is learned with them; no bias.

    Gidaris and Komodakis, CVPR 2018, arXiv:1804.09458. scale: what it starts from, 10 in the paper.
    """

    def __init__(self, scale: float = 10.0):
        super().__init__()
        self.scale = scale

    def begin(self, lesson: Lesson, generator: torch.Generator, width: int, device: torch.device) -> None:
        super().begin(lesson, generator, width, device)
        if not lesson.index:
            self.gain = nn.Parameter(torch.tensor(self.scale, device=device))

    def new(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        return {"weight": torch.randn(shape, generator=generator) * (2 / shape[1]) ** 0.5}

    def forward(self, features: Tensor, prepared: Tensor | slice) -> Tensor:
        return self.gain * Clip.unit(features) @ Clip.unit(self.weight[prepared]).T


class Texts(Reader):
    """The class texts of a frozen CLIP: scaled cosines. template: as in ZeroShot; default the dataset's own."""

    reads_class_texts = True

    def __init__(self, clip: Clip, template: Template = None):
        super().__init__()
        self.clip, self.template = clip, template

    def fixed(self, names: Names) -> Tensor:
        return hand(self.clip, names, self.template, unit=True)  # (C, E)

    def forward(self, features: Tensor, prepared: Tensor) -> Tensor:
        return self.clip.logits(features, prepared)


def columns(known: Sequence[str], names: Names, what: str) -> Tensor:
    """Places in `known` of the classes named; UnknownClass when one is not there."""
    place = {i: k for k, i in enumerate(known)}
    if strange := [str(n) for n, i in zip(names, ids(names), strict=True) if i not in place]:
        raise UnknownClass(
            f"{what} has no column for {', '.join(map(repr, strange[:5]))}{' ...' * (len(strange) > 5)}: "
            f"it was trained on {', '.join(map(repr, known[:5]))}{' ...' * (len(known) > 5)}; "
            "test it on those classes, or take a method that reads names (coop)"
        )
    return torch.tensor([place[i] for i in ids(names)])
