"""Cross-modal linear probe: Lin et al., "Multimodality Helps Unimodality", CVPR 2023, arXiv:2301.06267.

The class texts are further training samples of a linear head on normalised features, which starts from them: CLIP puts
both into one space. Sites: none; it stands on the features.

Differs from the authors' code in: every step sees the texts of all classes, not a random batch of them (its mean);
no search over learning rates. From the paper in: a class without a column (new classes) answers by its text.

Expected: no published number that could be checked.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names, ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output, Terms
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import Template, hand, rows


class CrossModal(Method):
    """A linear head that learns from images and texts.

    share: of the texts in the loss; the images have the rest; scale: of the logits, None for the CLIP's own; template:
    the class texts, default the dataset's own.
    """

    def __init__(self, clip: Clip, share: float = 0.5, scale: float | None = None, template: Template = None):
        super().__init__()
        self.clip, self.share, self.scale, self.template = clip, share, scale, template
        self.ids: Names = ()

    @torch.no_grad()
    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        names, known = lesson.train.names, self.ids if lesson.index else ()
        new = tuple(n for n, i in zip(names, ids(names), strict=True) if i not in known)
        old = [self.weight.detach()] if known else []
        texts = [self.fixed(new)] if new else []
        self.ids, self.weight = (*known, *ids(new)), nn.Parameter(torch.cat([*old, *texts]))  # (C, E)

    def fixed(self, names: Names) -> Tensor:
        return self.clip.unit(hand(self.clip, names, self.template, unit=True))  # (C, E)

    def prepare(self, names: Names, fixed: Tensor) -> Tensor:
        return rows(self.weight, self.ids, names, fixed)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        scale = self.clip.scale if self.scale is None else self.scale
        return Output(scale * self.clip.unit(image) @ prepared.T, image=image, text=prepared)

    def terms(self, batch: Batch, fixed: Tensor) -> tuple[Terms, Output]:
        head = self.prepare(batch.names, fixed)
        out, scale = self(batch.inputs, head), self.clip.scale if self.scale is None else self.scale
        labels = batch.labels.to(fixed.device)
        own = torch.arange(len(fixed), device=fixed.device)  # each text is of its own class
        return {
            "ce": ((1 - self.share) * F.cross_entropy(out.logits.float(), labels), len(labels)),
            "text": (self.share * F.cross_entropy(scale * fixed @ head.T, own), len(labels)),
        }, out
