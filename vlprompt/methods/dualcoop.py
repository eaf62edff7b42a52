"""DualCoOp: Sun et al., "DualCoOp: Fast Adaptation to Multi-Label Recognition with Limited Annotations", NeurIPS 2022.

arXiv:2206.09541. Two learned contexts before each class name, one for its presence and one for its absence, are
compared with every region of an image; a class reads the regions that look most like its presence, and is present where
presence wins there. Sites: soft tokens at layer 0 of the text tower; features of regions (of a ResNet those of its
attention pool without attention, the mean's first; of a ViT, which the authors do not have, the class token's and the
patches').

Differs from the authors' code in: logits are presence less absence, whose sigmoid is their softmax over the pair; the
loss is `train.loss=asl`, a mean over images where theirs is a sum over the batch (weight 0.03 there is weight
0.03 * 32 here); which labels are known follows from the seed, theirs from a draw without one; nothing is chosen on test
images, theirs takes the epoch of the best mAP on them; float32. From the paper in: nothing else.

Expected (partial labels, RN101, 10 to 90 %, mAP): COCO 80.8 to 84.2, mean 82.7; VOC2007 91.6 to 94.8, mean 94.0;
NUS-WIDE 54.0 to 58.8, mean 57.3 (re-run by TaI-DPT's authors, in a transcription).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from vlprompt.core.images import Images
from vlprompt.core.method import Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.methods._context_pairs import ContextPairMethod


class DualCoOp(ContextPairMethod):
    """Learned contexts of the presence and of the absence of a class, compared with the regions of an image.

    Args:
        clip: frozen CLIP with features of patches.
        n_ctx: tokens of the context of presence.
        n_negative_ctx: tokens of the context of absence.
        class_specific: whether each class has its own two contexts (CSC); such a prompt cannot classify new classes.
        context_template: where context and class name stand.
        sharpness: scale of the cosines in the softmax over regions.
        scale: of the logits.
        rows: what an image has: "regions" are its pooled place and all others, with positions; "local" are the others
            alone, without positions, as TaI-DPT's authors have it.
        learn_scale: train the logarithm of the scale, from this value, as they do.
        learn_sharpness: train the logarithm of the sharpness, likewise.
    """

    def __init__(
        self,
        clip: Clip,
        n_ctx: int = 16,
        n_negative_ctx: int = 16,
        class_specific: bool = True,
        context_template: str = "{ctx} {name}.",
        sharpness: float = 20.0,
        scale: float = 100.0,
        rows: Literal["regions", "local"] = "regions",
        learn_scale: bool = False,
        learn_sharpness: bool = False,
    ):
        super().__init__()
        self.clip, self.n_ctx, self.n_negative_ctx, self.class_specific = clip, n_ctx, n_negative_ctx, class_specific
        self.context_template, self.sharpness, self.scale = context_template, sharpness, scale
        self.rows, self.learn_scale, self.learn_sharpness = rows, learn_scale, learn_sharpness

    @property
    def context_sizes(self) -> Mapping[str, int]:
        return {"ctx": self.n_ctx, "negative_ctx": self.n_negative_ctx}

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(n_ctx=1, n_negative_ctx=1, sharpness=1e-6, scale=1e-6)
        super().begin_lesson(lesson, generator)
        if not lesson.index:
            self._learn_scales(self.sharpness)

    def forward(self, inputs: Images, prepared: tuple[Tensor, Tensor]) -> Output:
        regions = self.clip.unit(self.clip.image(inputs, output=self.rows).float())  # (B, 1 + N, E), or (B, N, E)
        scale, sharpness = self.get_scales(self.sharpness)
        with torch.autocast(regions.device.type, enabled=False):  # differences of cosines are small
            present, absent = (regions @ self.clip.unit(text.float()).T for text in prepared)  # (B, 1 + N, C)
        weights = (sharpness * present).softmax(1)
        logits = scale * (weights * (present - absent)).sum(1)
        return Output(logits, text_features=prepared[0])
