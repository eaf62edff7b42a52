"""CLIP-LoRA: Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR workshops 2024.

arXiv:2405.18541. Low-rank updates beside the frozen maps of attention, in both towers, with the same hyper-parameters
for every dataset; class texts are hand-written. Sites: q, k, v (or any others) of the layers of both towers.

Differs from the authors' code in: the gradients of its path without dropout, which are wrong there, are right here; the
scale of the logits is the CLIP's own (100 for published ones); float32. From the paper in: nothing.

Expected (few-shot, ViT-B/16, 16 shots, mean of 11 sets): about 83.0, read off the authors' plot.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import PLAIN, Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.adapters import LowRank
from vlprompt.layers.class_texts import Template, hand, holes, templates

Side = Literal["image", "text"]


class CLIPLoRA(Method):
    """Low-rank updates in the towers of a CLIP.

    sides: the towers; sites: kinds of maps (q k v out up down ...); layers: which, None for all; rank, alpha: an update
    is alpha / sqrt(rank) times up down x; dropout: on its input; scale: of the logits, None for the CLIP's own;
    template: the class texts, "a photo of a {name}." for every dataset as in the paper, None for the dataset's own.
    """

    def __init__(
        self,
        clip: Clip,
        sides: tuple[Side, ...] = ("image", "text"),
        sites: tuple[str, ...] = ("q", "k", "v"),
        layers: tuple[int, ...] | None = None,
        rank: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.25,
        scale: float | None = None,
        template: Template = PLAIN,
    ):
        super().__init__()
        self.clip, self.sides, self.sites, self.layers, self.rank = clip, tuple(sides), tuple(sites), layers, rank
        self.alpha, self.dropout, self.scale, self.template = alpha, dropout, scale, template

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        if lesson.index:
            return
        self.at_least(rank=1, dropout=0)
        by, self.parts = self.alpha / math.sqrt(self.rank), nn.ModuleDict()
        for side in self.sides:
            found = getattr(self.clip, side).sites(*self.sites)
            chosen = {
                s: fans for s, fans in found.items() if self.layers is None or int(s.split("/")[0]) in self.layers
            }
            if not chosen:
                depth = getattr(self.clip, side).depth
                raise ValueError(f"the {side} tower has layers 0 to {depth - 1}, none of {list(self.layers or ())}")
            make = {
                s: LowRank(fans, self.rank, by, self.dropout, generator, self.clip.device) for s, fans in chosen.items()
            }
            self.parts[side] = nn.ModuleDict(make)

    def prompt(self, side: Side) -> Prompt:
        return Prompt(beside=self.parts[side]) if side in self.sides else Prompt()

    def fixed(self, names: Names) -> Tensor | list[list[str]]:
        if "text" not in self.sides:
            return hand(self.clip, names, self.template, unit=True)  # (C, E)
        return [holes(t, names) for t in templates(self.template)]

    def prepare(self, names: Names, fixed: Tensor | list[list[str]]) -> Tensor:
        if isinstance(fixed, Tensor):
            return fixed
        every = [self.clip.text(texts, self.prompt("text"))[0] for texts in fixed]
        return every[0] if len(every) == 1 else torch.stack([self.clip.unit(t) for t in every]).mean(0)  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs, self.prompt("image"))  # (B, E)
        return Output(self.clip.logits(image, prepared, self.scale), image=image, text=prepared)
