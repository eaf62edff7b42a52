"""Cross-modal linear probe: Lin et al., "Multimodality Helps Unimodality", CVPR 2023, arXiv:2301.06267.

The class texts are further training samples of a linear head on normalised features, which starts from them: CLIP puts
both into one space. Sites: none; it reads the features.

Differs from the authors' code in: every step sees the texts of all classes, not a random batch of them (its mean);
no search over learning rates. From the paper in: a class without a column (new classes) answers by its text.

Expected: no published number that could be checked.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts, select_class_rows


class CrossModal(Method):
    """A linear head that learns from images and class texts.

    Args:
        clip: frozen CLIP.
        text_weight: of the texts in the loss; the images have the rest.
        logit_scale: of the logits; default the CLIP's own.
        template: of the class texts; default the dataset's own.
    """

    needs_single_labels = True

    def __init__(
        self, clip: Clip, text_weight: float = 0.5, logit_scale: float | None = None, template: TemplateChoice = None
    ):
        super().__init__()
        self.clip, self.text_weight, self.logit_scale, self.template = clip, text_weight, logit_scale, template
        self.class_ids: Names = ()

    @torch.no_grad()
    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        names, known_ids = lesson.train.names, self.class_ids if lesson.index else ()
        added = tuple(name for name, i in zip(names, class_ids(names), strict=True) if i not in known_ids)
        weights = [self.weight.detach()] if known_ids else []
        weights += [self.precompute(added)] if added else []
        self.class_ids, self.weight = (*known_ids, *class_ids(added)), nn.Parameter(torch.cat(weights))  # (C, E)

    @property
    def scale(self) -> float | Tensor:
        return self.clip.scale if self.logit_scale is None else self.logit_scale

    def precompute(self, names: Names) -> Tensor:
        return self.clip.unit(encode_class_texts(self.clip, names, self.template, normalize=True))  # (C, E)

    def prepare(self, names: Names, fixed: Tensor) -> Tensor:
        return select_class_rows(self.weight, self.class_ids, names, fixed)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.scale * self.clip.unit(image) @ prepared.T, image_features=image, text_features=prepared)

    def loss_terms(self, batch: Batch, fixed: Tensor) -> tuple[LossTerms, Output]:
        weight = self.prepare(batch.names, fixed)
        out, labels = self(batch.inputs, weight), batch.labels.to(fixed.device)
        text_labels = torch.arange(len(fixed), device=fixed.device)  # one text for each class
        image_loss = batch.label_loss(out.logits.float(), labels)
        text_loss = F.cross_entropy(self.scale * fixed @ weight.T, text_labels)
        return {
            "ce": ((1 - self.text_weight) * image_loss, len(labels)),
            "text": (self.text_weight * text_loss, len(labels)),
        }, out
