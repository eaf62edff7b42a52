"""Readers: what comes out. They turn features into logits over the names that are asked for."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.parts import Template, hand
from vlprompt.stage import Lesson, Names, ids
from vlprompt.tower import Clip


class Reader(nn.Module):
    """Features (B, E) -> logits (B, C); the same life as a Method: begin, fixed, prepare, forward."""

    def begin(self, lesson: Lesson, generator: torch.Generator, width: int, device: torch.device) -> None:
        """Called for every lesson: create at the first, grow later."""

    def fixed(self, names: Names) -> Any:
        """What needs no gradient and no image, once per list of names."""
        return None

    def prepare(self, names: Names, fixed: Any) -> Any:
        return fixed

    def forward(self, features: Tensor, prepared: Any) -> Tensor:
        raise NotImplementedError("a Reader says how features become logits")


class Linear(Reader):
    """One column and one bias per class that it has met; the names asked for choose the columns.

    std: of the initial weights. New columns come with every lesson that brings new ids; biases start at zero.
    """

    def __init__(self, std: float = 0.01):
        super().__init__()
        self.std = std
        self.ids: Names = ()

    def begin(self, lesson: Lesson, generator: torch.Generator, width: int, device: torch.device) -> None:
        new = [i for i in ids(lesson.train.names) if i not in self.ids]
        weight = (torch.randn(len(new), width, generator=generator) * self.std).to(device)
        bias = torch.zeros(len(new), device=device)
        if self.ids:
            weight, bias = torch.cat([self.weight.detach(), weight]), torch.cat([self.bias.detach(), bias])
        self.ids, self.weight, self.bias = (*self.ids, *new), nn.Parameter(weight), nn.Parameter(bias)

    def fixed(self, names: Names) -> Tensor:
        """The columns of these names; ValueError for a class it never met."""
        return columns(self.ids, names, "a linear head").to(self.weight.device)

    def forward(self, features: Tensor, prepared: Tensor) -> Tensor:
        return F.linear(features, self.weight[prepared], self.bias[prepared])


class Texts(Reader):
    """The class texts of a frozen CLIP: scaled cosines. template: as in ZeroShot; default the dataset's own."""

    def __init__(self, clip: Clip, template: Template = None):
        super().__init__()
        self.clip, self.template = clip, template

    def fixed(self, names: Names) -> Tensor:
        return hand(self.clip, names, self.template, unit=True)  # (C, E)

    def forward(self, features: Tensor, prepared: Tensor) -> Tensor:
        return self.clip.logits(features, prepared)


def columns(known: Sequence[str], names: Names, what: str) -> Tensor:
    """Places in `known` of the classes named; ValueError when one is not there."""
    place = {i: k for k, i in enumerate(known)}
    if strange := [str(n) for n, i in zip(names, ids(names), strict=True) if i not in place]:
        raise ValueError(
            f"{what} has no column for {', '.join(map(repr, strange[:5]))}{' ...' * (len(strange) > 5)}: "
            f"it was trained on {', '.join(map(repr, known[:5]))}{' ...' * (len(known) > 5)}; "
            "test it on those classes, or take a method that reads names (coop)"
        )
    return torch.tensor([place[i] for i in ids(names)])
