"""Zero-shot CLIP: Radford et al., ICML 2021, arXiv:2103.00020.

The paper is "Learning Transferable Visual Models From Natural Language Supervision". The class whose text is nearest to
the image. With several templates the class vector is the mean of their normalised features. Nothing is trained. Sites:
none.

Differs from the authors' notebook in: the mean over templates is left un-normalised until the cosine (the same
numbers).

Expected (base-to-new, ViT-B/16, hand-written templates, mean of 11 sets): base 69.34, new 74.22 (the CoCoOp paper's
Table 1).
"""

import torch
from torch import Tensor

from vlprompt.method import Method, Output
from vlprompt.parts import holes
from vlprompt.stage import Images, Names
from vlprompt.tower import Clip


class ZeroShot(Method):
    """A frozen CLIP as it is. template: one text with {name} in it, or several that are averaged."""

    def __init__(self, clip: Clip, template: str | list[str] = "a photo of a {name}."):
        super().__init__()
        self.clip, self.template = clip, template

    def fixed(self, names: Names) -> Tensor:
        templates = [self.template] if isinstance(self.template, str) else self.template
        every = [self.clip.unit(self.clip.text(holes(t, names))[0]) for t in templates]
        return torch.stack(every).mean(0)  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.clip.logits(image, prepared), image=image, text=prepared)
