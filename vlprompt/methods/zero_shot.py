"""Zero-shot CLIP: Radford et al., ICML 2021, arXiv:2103.00020.

The paper is "Learning Transferable Visual Models From Natural Language Supervision". The class whose text is nearest to
the image. With several templates the class vector is the mean of their normalised features; so it is with sentences
about each class from a file (CuPL: Pratt et al., ICCV 2023, arXiv:2209.03320), while descriptors (DCLIP: Menon and
Vondrick, ICLR 2023, arXiv:2210.07183) and random words in their place (WaffleCLIP: Roth et al., ICCV 2023,
arXiv:2306.07282) score by the mean of their cosines, `method.pooling=mean`. Nothing is trained. Sites: none.

Differs from the authors' code in: the mean over templates is left un-normalised until the cosine (the same numbers);
cosines of descriptors have the CLIP's scale (theirs have none: the same answers); a class without descriptions and an
empty description are errors; float32. From the papers in: the clause of a descriptor that begins with the letter "a"
is "which is", as in DCLIP's code.

Expected (base-to-new, ViT-B/16, hand-written templates, mean of 11 sets): base 69.34, new 74.22 (the CoCoOp paper's
Table 1). Mean of 8 sets (WaffleCLIP's table; B/32 and L/14): CLIP 57.34, 67.34, DCLIP 58.55, 69.14, WaffleCLIP 58.58,
68.95.
"""

from typing import Literal

import torch
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.towers import Clip
from vlprompt.layers.class_descriptions import is_description_file, read_descriptions
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts, encode_text_groups, list_class_texts


class ZeroShot(Method):
    """A frozen CLIP that classifies by hand-written texts.

    Args:
        clip: frozen CLIP.
        template: a text with {name} in it, several that are averaged, a set by name ("imagenet-80", "imagenet-7"), or a
            file of descriptions; default the dataset's own.
        descriptions: path of a JSON or YAML file {class name or id: [texts]} (~ is the home folder); a class then has
            these texts, verbatim or put into a template that has a {description} or {descriptor}.
        pooling: of several texts: "merged" scores by their mean feature, "mean" by the mean of their cosines, "max" by
            the highest.
    """

    def __init__(
        self,
        clip: Clip,
        template: TemplateChoice = None,
        descriptions: str | None = None,
        pooling: Literal["merged", "mean", "max"] = "merged",
    ):
        super().__init__()
        self.clip, self.template, self.descriptions, self.pooling = clip, template, descriptions, pooling

    def precompute(self, names: Names) -> Tensor | list[Tensor]:
        """Return class texts (C, E), or with pooling="max" the unit features (S, E) of the texts of each class."""
        if self.descriptions is None and self.pooling == "merged":
            return encode_class_texts(self.clip, names, self.template, normalize=True)
        groups = [self.clip.unit(group) for group in encode_text_groups(self.clip, self.list_texts(names))]
        return groups if self.pooling == "max" else torch.stack([group.mean(0) for group in groups])

    def list_texts(self, names: Names) -> list[list[str]]:
        """Return all texts of each class."""
        if self.descriptions is None:
            return list_class_texts(names, self.template)
        if is_description_file(self.template):
            raise ValueError(
                f"method.template: expected a template beside method.descriptions, got the file {self.template!r}. "
                "Leave one of the two out."
            )
        return read_descriptions(self.descriptions, names, self.template if isinstance(self.template, str) else None)

    def forward(self, inputs: Images, prepared: Tensor | list[Tensor]) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        if isinstance(prepared, list):
            return Output(self._score(image, torch.cat(prepared), [len(group) for group in prepared]))
        if self.pooling == "merged":
            logits = self.clip.logits(image, prepared)
        else:
            logits = self.clip.scale * (self.clip.unit(image) @ prepared.T) + self.clip.bias
        return Output(logits, image_features=image, text_features=prepared)

    def _score(self, image: Tensor, texts: Tensor, counts: list[int]) -> Tensor:
        """Return the highest logit of each class (B, C) among its texts, (sum of counts, E) class by class."""
        return torch.stack([part.amax(-1) for part in self.clip.logits(image, texts).split(counts, -1)], -1)
