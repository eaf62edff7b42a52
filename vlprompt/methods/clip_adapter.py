"""CLIP-Adapter: Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024.

arXiv:2110.04544. A bottleneck of two layers changes the image feature, and the sum of the changed and the frozen one,
ratio to 1 - ratio, is compared with the hand-written texts. Sites: none; it changes the feature.

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
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts
from vlprompt.layers.initial_values import make_linear


class CLIPAdapter(Method):
    """An adapter of the image feature.

    Args:
        clip: frozen CLIP.
        residual_ratio: of the adapted feature (alpha).
        reduction: the joint width over the hidden width.
        template: of the class texts; default the dataset's own.
    """

    def __init__(self, clip: Clip, residual_ratio: float = 0.2, reduction: int = 4, template: TemplateChoice = None):
        super().__init__()
        self.clip, self.residual_ratio, self.reduction, self.template = clip, residual_ratio, reduction, template

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        if lesson.index:
            return
        self.require_at_least(reduction=1)
        dim, device = self.clip.feature_dim, self.clip.device
        hidden_dim = max(1, dim // self.reduction)
        down = make_linear(dim, hidden_dim, generator, device, bias=False)
        up = make_linear(hidden_dim, dim, generator, device, bias=False)
        self.net = nn.Sequential(down, nn.ReLU(), up, nn.ReLU())

    def precompute(self, names: Names) -> Tensor:
        return encode_class_texts(self.clip, names, self.template)  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E), un-normalised
        image = self.residual_ratio * self.net(image) + (1 - self.residual_ratio) * image
        return Output(self.clip.logits(image, prepared), image_features=image, text_features=prepared)
