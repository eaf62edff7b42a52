"""TaskRes: Yu et al., "Task Residual for Tuning Vision-Language Models", CVPR 2023, arXiv:2211.10277.

A learned vector is added to each class text: t + alpha x, with x = 0 at the start. Sites: none; it changes the text
features.

Differs from the authors' code in: underscores in class names become spaces; only the plain base is there (their
enhanced base is a weight file). From the paper in: a class without a vector (new classes) answers by its text alone.

Expected (few-shot, ViT-B/16, 16 shots, mean of 11 sets): about 80.8, read off CLIP-LoRA's plot.
"""

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts, select_class_rows


class TaskRes(Method):
    """A learned residual of each class text.

    Args:
        clip: frozen CLIP.
        alpha: weight of the residuals.
        template: of the class texts; default the dataset's own.
    """

    def __init__(self, clip: Clip, alpha: float = 0.5, template: TemplateChoice = None):
        super().__init__()
        self.clip, self.alpha, self.template = clip, alpha, template
        self.class_ids: Names = ()

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        known_ids = self.class_ids if lesson.index else ()
        added_ids = [i for i in class_ids(lesson.train.names) if i not in known_ids]
        earlier = [self.residual.detach()] if known_ids else []
        zeros = torch.zeros(len(added_ids), self.clip.feature_dim, device=self.clip.device)
        self.class_ids, self.residual = (*known_ids, *added_ids), nn.Parameter(torch.cat([*earlier, zeros]))  # (C, E)

    def precompute(self, names: Names) -> Tensor:
        return encode_class_texts(self.clip, names, self.template)  # (C, E), un-normalised

    def prepare(self, names: Names, fixed: Tensor) -> Tensor:
        return fixed + self.alpha * select_class_rows(self.residual, self.class_ids, names, torch.zeros_like(fixed))

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.clip.logits(image, prepared), image_features=image, text_features=prepared)
