"""What the methods with adapters in both towers of a CLIP share: where they stand, and the answer by class texts."""

from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Generator, Tensor, nn

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, TextTower, VisionTower
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts, fill_class_texts, load_templates

TowerName = Literal["image", "text"]


class ClipAdapterMethod(Method):
    """Adapters in the towers of a CLIP.

    Args:
        clip: frozen CLIP.
        towers: "image", "text" or both.
        sites: kinds of sites.
        layers: indices of layers; default all.
        logit_scale: of the logits; default the CLIP's own.
        template: of the class texts.
    """

    adapters: nn.ModuleDict

    def __init__(
        self,
        clip: Clip,
        towers: tuple[TowerName, ...],
        sites: tuple[str, ...],
        layers: tuple[int, ...] | None,
        logit_scale: float | None,
        template: TemplateChoice,
    ):
        super().__init__()
        self.clip, self.towers, self.sites, self.layers = clip, tuple(towers), tuple(sites), layers
        self.logit_scale, self.template = logit_scale, template

    def validate(self) -> None:
        """Raise ValueError for settings out of range."""

    def build_adapter(self, tower: TextTower, site: str, fans: tuple[int, int], generator: Generator) -> nn.Module:
        """Build the adapter at a site with its (fan_in, fan_out)."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method build_adapter. Define the adapters.")

    def begin_lesson(self, lesson: Lesson, generator: Generator) -> None:
        if lesson.index:
            return
        self.validate()
        self.adapters = nn.ModuleDict()
        for name in self.towers:
            tower, sites = cast(TextTower, getattr(self.clip, name)), self.select_sites(name)
            adapters = {site: self.build_adapter(tower, site, fans, generator) for site, fans in sites.items()}
            self.adapters[name] = nn.ModuleDict(adapters)

    def select_sites(self, name: TowerName) -> dict[str, tuple[int, int]]:
        """Return the sites of a tower that get an adapter, with their (fan_in, fan_out)."""
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

    def encode_texts(self, fixed: Tensor | list[list[str]]) -> Tensor:
        """Compute the class texts (C, E) of the text tower as it is now."""
        if isinstance(fixed, Tensor):
            return fixed
        features = [self.clip.text(texts, self.prompt("text"))[0] for texts in fixed]
        return features[0] if len(features) == 1 else torch.stack([self.clip.unit(t) for t in features]).mean(0)

    def prepare(self, names: Names, fixed: Tensor | list[list[str]]) -> Tensor:
        return self.encode_texts(fixed)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs, self.prompt("image"))  # (B, E)
        return Output(self.clip.logits(image, prepared, self.logit_scale), image_features=image, text_features=prepared)
