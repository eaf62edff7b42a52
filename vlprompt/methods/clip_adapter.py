"""CLIP-Adapter: Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024.

arXiv:2110.04544. A bottleneck of two layers changes the image feature, and the sum of the changed and the frozen one,
ratio to 1 - ratio, is compared with the hand-written texts. Sites: none; it stands on the feature.

Differs from the authors' code in: the width comes from the tower (theirs is written as 1024). From the paper in: only
the image adapter is there, as in the code; the residual ratio is not learned.

Expected (few-shot, RN50, mean of 11 sets): 62.67 65.55 68.61 71.40 74.44 at 1 2 4 8 16 shots (Tip-Adapter's log).
"""

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.adapters import dense
from vlprompt.layers.class_texts import Template, hand


class CLIPAdapter(Method):
    """An adapter on the image feature.

    ratio: of the adapted feature (alpha); reduction: the hidden width is the joint width over this; template: the class
    texts, default the dataset's own.
    """

    def __init__(self, clip: Clip, ratio: float = 0.2, reduction: int = 4, template: Template = None):
        super().__init__()
        self.clip, self.ratio, self.reduction, self.template = clip, ratio, reduction, template

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        if lesson.index:
            return
        self.at_least(reduction=1)
        wide, device = self.clip.width, self.clip.device
        small = max(1, wide // self.reduction)
        down, up = (dense(a, b, generator, device, bias=False) for a, b in ((wide, small), (small, wide)))
        self.net = nn.Sequential(down, nn.ReLU(), up, nn.ReLU())

    def fixed(self, names: Names) -> Tensor:
        return hand(self.clip, names, self.template)  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E), un-normalised
        image = self.ratio * self.net(image) + (1 - self.ratio) * image
        return Output(self.clip.logits(image, prepared), image=image, text=prepared)
