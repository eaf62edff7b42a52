"""CLIP-LoRA: Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR workshops 2024.

arXiv:2405.18541. Low-rank updates of the frozen maps of attention, in both towers, with the same hyper-parameters
for every dataset; class texts are hand-written. Sites: q, k, v (or any others) of the layers of both towers.

Differs from the authors' code in: the gradients of its path without dropout, which are wrong there, are right here; the
scale of the logits is the CLIP's own (100 for published ones); float32. From the paper in: nothing.

Expected (few-shot, ViT-B/16, 16 shots, mean of 11 sets): about 83.0, read off the authors' plot.
"""

import math
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import DEFAULT_TEMPLATE, Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, TextTower, VisionTower
from vlprompt.layers.adapters import LowRankAdapter
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts, fill_class_texts, load_templates
from vlprompt.methods._low_rank import require_linear_sites

TowerName = Literal["image", "text"]


class CLIPLoRA(Method):
    """Low-rank updates in the towers of a CLIP.

    Args:
        clip: frozen CLIP.
        towers: "image", "text" or both.
        sites: kinds of linear maps (q k v out up down ...).
        layers: indices of layers; default all.
        rank: of an update.
        alpha: an update is alpha / sqrt(rank) times up down x.
        dropout: on the input of an update.
        logit_scale: of the logits; default the CLIP's own.
        template: of the class texts; default one for every dataset, as in the paper; None: the dataset's own.
    """

    def __init__(
        self,
        clip: Clip,
        towers: tuple[TowerName, ...] = ("image", "text"),
        sites: tuple[str, ...] = ("q", "k", "v"),
        layers: tuple[int, ...] | None = None,
        rank: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.25,
        logit_scale: float | None = None,
        template: TemplateChoice = DEFAULT_TEMPLATE,
    ):
        super().__init__()
        self.clip, self.towers, self.sites, self.layers, self.rank = clip, tuple(towers), tuple(sites), layers, rank
        self.alpha, self.dropout, self.logit_scale, self.template = alpha, dropout, logit_scale, template

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        if lesson.index:
            return
        self.require_at_least(rank=1, dropout=0)
        require_linear_sites(self.sites)
        options = (self.rank, self.alpha / math.sqrt(self.rank), self.dropout, generator, self.clip.device)
        self.adapters = nn.ModuleDict()
        for name in self.towers:
            sites = self._select_sites(name)
            self.adapters[name] = nn.ModuleDict({site: LowRankAdapter(f, *options) for site, f in sites.items()})

    def _select_sites(self, name: TowerName) -> dict[str, tuple[int, int]]:
        tower: VisionTower | TextTower = getattr(self.clip, name)
        sites = tower.sites(*self.sites)
        if self.layers is not None:
            sites = {site: fans for site, fans in sites.items() if int(site.split("/")[0]) in self.layers}
        if not sites:
            raise ValueError(
                f"method.layers: expected layers 0 to {tower.depth - 1} of the {name} tower, got "
                f"{list(self.layers or ())}. Set method.layers to some of these."
            )
        return sites

    def prompt(self, tower: TowerName) -> Prompt:
        return Prompt(adapters=cast(nn.ModuleDict, self.adapters[tower])) if tower in self.towers else Prompt()

    def merge_backbone(self) -> Clip:
        image = cast(VisionTower, self.clip.image).merged(self.prompt("image"))
        return replace(self.clip, image=image, text=self.clip.text.merged(self.prompt("text")))

    def precompute(self, names: Names) -> Tensor | list[list[str]]:
        if "text" not in self.towers:
            return encode_class_texts(self.clip, names, self.template, normalize=True)  # (C, E)
        return [fill_class_texts(t, names) for t in load_templates(self.template)]

    def prepare(self, names: Names, fixed: Tensor | list[list[str]]) -> Tensor:
        if isinstance(fixed, Tensor):
            return fixed
        features = [self.clip.text(texts, self.prompt("text"))[0] for texts in fixed]
        return features[0] if len(features) == 1 else torch.stack([self.clip.unit(t) for t in features]).mean(0)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs, self.prompt("image"))  # (B, E)
        return Output(self.clip.logits(image, prepared, self.logit_scale), image_features=image, text_features=prepared)
