"""CLAP: Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large VLMs", CVPR 2024, arXiv:2312.12730.

A linear probe that starts at the class texts and is held near them, each class as firmly as zero-shot CLIP is right
about its training images, so that nothing has to be searched on validation images. Sites: none.

Differs from the authors' code in: the multipliers come from the images without augmentation; a template is the
dataset's own. From the paper in: a class without a prototype (new classes) answers by its text.

Expected: no published number that could be checked.
"""

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import Names, ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output, Terms
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import Template, hand, rows


class CLAP(Method):
    """A class-adaptive linear probe. weight: of the penalty (0: the paper's ZS-LP); template: the class texts."""

    firm: Tensor

    def __init__(self, clip: Clip, weight: float = 1.0, template: Template = None):
        super().__init__()
        self.clip, self.weight, self.template = clip, weight, template
        self.ids: Names = ()

    @torch.no_grad()
    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        names, known = lesson.train.names, self.ids if lesson.index else ()
        new = tuple(n for n, i in zip(names, ids(names), strict=True) if i not in known)
        old, held = ([self.prototypes.detach()], [self.firm]) if known else ([], [])
        texts = self.fixed(new) if new else torch.zeros(0, self.clip.width, device=self.clip.device)
        firm = self._firmness(lesson.train)[[i for i, n in enumerate(ids(names)) if n not in known]]
        self.ids, self.prototypes = (*known, *ids(new)), nn.Parameter(torch.cat([*old, texts]))  # (C, E)
        self.register_buffer("firm", torch.cat([*held, firm]))  # (C,): lambda in the paper

    def _firmness(self, train: Split) -> Tensor:
        """The mean zero-shot probability of the true class over its training images (C,); 0 without any."""
        sums = torch.zeros(len(train.names), device=self.clip.device)
        count = torch.tensor(train.count(), device=self.clip.device)
        text = self.fixed(train.names) if len(train) else None
        for batch in train.batches(256):
            assert text is not None, "there are batches"
            sure = self.clip.logits(self.clip.image(batch.inputs), text).softmax(-1)
            labels = batch.labels.to(sure.device)
            sums.index_add_(0, labels, sure.gather(1, labels[:, None])[:, 0])
        return sums / count.clamp(min=1)

    def fixed(self, names: Names) -> Tensor:
        return hand(self.clip, names, self.template)  # (C, E), un-normalised

    def prepare(self, names: Names, fixed: Tensor) -> Tensor:
        return rows(self.prototypes, self.ids, names, fixed)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.clip.logits(image, prepared), image=image, text=prepared)

    def terms(self, batch: Batch, fixed: Tensor) -> tuple[Terms, Output]:
        found, out = super().terms(batch, fixed)
        firm = rows(self.firm[:, None], self.ids, batch.names, torch.zeros_like(fixed[:, :1]))[:, 0]
        far = (firm * (self.prepare(batch.names, fixed) - fixed).square().sum(-1)).mean()
        return found | {"near": (self.weight * far, len(batch.labels))}, out
