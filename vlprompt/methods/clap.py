"""CLAP: Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large VLMs", CVPR 2024, arXiv:2312.12730.

A linear probe that starts at the class texts and is regularised towards them, each class in proportion to zero-shot
CLIP's confidence on its training images, so that nothing has to be searched on validation images. Sites: none.

Differs from the authors' code in: the multipliers come from the images without augmentation; a template is the
dataset's own. From the paper in: a class without a prototype (new classes) answers by its text.

Expected: no published number that could be checked.
"""

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts, select_class_rows


class CLAP(Method):
    """A class-adaptive linear probe.

    Args:
        clip: frozen CLIP.
        weight: of the penalty (0: the paper's ZS-LP).
        template: of the class texts; default the dataset's own.
    """

    needs_single_labels = True
    penalty_weights: Tensor

    def __init__(self, clip: Clip, weight: float = 1.0, template: TemplateChoice = None):
        super().__init__()
        self.clip, self.weight, self.template = clip, weight, template
        self.class_ids: Names = ()

    @torch.no_grad()
    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        names, known_ids = lesson.train.names, self.class_ids if lesson.index else ()
        is_added = [i not in known_ids for i in class_ids(names)]
        added = tuple(name for name, flag in zip(names, is_added, strict=True) if flag)
        texts = self.precompute(added) if added else torch.zeros(0, self.clip.feature_dim, device=self.clip.device)
        weights = self._zero_shot_confidence(lesson.train)[[i for i, flag in enumerate(is_added) if flag]]
        if known_ids:
            texts, weights = torch.cat([self.prototypes, texts]), torch.cat([self.penalty_weights, weights])
        self.class_ids, self.prototypes = (*known_ids, *class_ids(added)), nn.Parameter(texts)  # (C, E)
        self.register_buffer("penalty_weights", weights)  # (C,): lambda in the paper

    def _zero_shot_confidence(self, train: Split) -> Tensor:
        """Compute the mean zero-shot probability of the true class over its training images (C,); 0 without any."""
        sums = torch.zeros(len(train.names), device=self.clip.device)
        counts = torch.tensor(train.count_per_class(), device=self.clip.device)
        text = self.precompute(train.names) if len(train) else None
        for batch in train.batches(256):
            assert text is not None, "there are batches"
            p = self.clip.logits(self.clip.image(batch.inputs), text).softmax(-1)
            labels = batch.labels.to(p.device)
            sums.index_add_(0, labels, p.gather(1, labels[:, None])[:, 0])
        return sums / counts.clamp(min=1)

    def precompute(self, names: Names) -> Tensor:
        return encode_class_texts(self.clip, names, self.template)  # (C, E), un-normalised

    def prepare(self, names: Names, fixed: Tensor) -> Tensor:
        return select_class_rows(self.prototypes, self.class_ids, names, fixed)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.clip.logits(image, prepared), image_features=image, text_features=prepared)

    def loss_terms(self, batch: Batch, fixed: Tensor) -> tuple[LossTerms, Output]:
        terms, out = super().loss_terms(batch, fixed)
        zeros = torch.zeros_like(fixed[:, :1])
        weights = select_class_rows(self.penalty_weights[:, None], self.class_ids, batch.names, zeros)[:, 0]
        distance = (weights * (self.prepare(batch.names, fixed) - fixed).square().sum(-1)).mean()
        return terms | {"near": (self.weight * distance, len(batch.labels))}, out
