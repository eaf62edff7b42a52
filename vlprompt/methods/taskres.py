"""TaskRes: Yu et al., "Task Residual for Tuning Vision-Language Models", CVPR 2023, arXiv:2211.10277.

Each class text gets a learned vector of its own on top: t + alpha x, with x = 0 at the start. Sites: none; it stands on
the text features.

Differs from the authors' code in: underscores in class names become spaces; only the plain base is there (their
enhanced base is a weight file). From the paper in: a class without a vector (new classes) answers by its text alone.

Expected (few-shot, ViT-B/16, 16 shots, mean of 11 sets): about 80.8, read off CLIP-LoRA's plot.
"""

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names, ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import Template, hand, rows


class TaskRes(Method):
    """A learned residual for each class text. alpha: its weight; template: the class texts, default the dataset's."""

    def __init__(self, clip: Clip, alpha: float = 0.5, template: Template = None):
        super().__init__()
        self.clip, self.alpha, self.template = clip, alpha, template
        self.ids: Names = ()

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        known = self.ids if lesson.index else ()
        new = [i for i in ids(lesson.train.names) if i not in known]
        old = [self.residual.detach()] if known else []
        zeros = torch.zeros(len(new), self.clip.width, device=self.clip.device)
        self.ids, self.residual = (*known, *new), nn.Parameter(torch.cat([*old, zeros]))  # (C, E)

    def fixed(self, names: Names) -> Tensor:
        return hand(self.clip, names, self.template)  # (C, E), un-normalised

    def prepare(self, names: Names, fixed: Tensor) -> Tensor:
        return fixed + self.alpha * rows(self.residual, self.ids, names, torch.zeros_like(fixed))

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.clip.logits(image, prepared), image=image, text=prepared)
