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

from typing import cast

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, VisionTower
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.layers.heads import find_class_indices


class DualCoOp(Method):
    """Learned contexts of the presence and of the absence of a class, compared with the regions of an image.

    Args:
        clip: frozen CLIP with features of patches.
        n_ctx: tokens of the context of presence.
        n_negative_ctx: tokens of the context of absence.
        class_specific: whether each class has its own two contexts (CSC); such a prompt cannot classify new classes.
        context_template: where context and class name stand.
        sharpness: scale of the cosines in the softmax over regions.
        scale: of the logits.
    """

    ctx: Tensor
    negative_ctx: Tensor

    def __init__(
        self,
        clip: Clip,
        n_ctx: int = 16,
        n_negative_ctx: int = 16,
        class_specific: bool = True,
        context_template: str = "{ctx} {name}.",
        sharpness: float = 20.0,
        scale: float = 100.0,
    ):
        super().__init__()
        self.clip, self.n_ctx, self.n_negative_ctx, self.class_specific = clip, n_ctx, n_negative_ctx, class_specific
        self.context_template, self.sharpness, self.scale = context_template, sharpness, scale
        self.class_ids: Names = ()

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(n_ctx=1, n_negative_ctx=1, sharpness=0, scale=0)
        cast(VisionTower, self.clip.image).require_patch_features()
        if lesson.index and not self.class_specific:
            return
        known_ids = self.class_ids if lesson.index else ()
        added_ids = [i for i in class_ids(lesson.train.names) if i not in known_ids] if self.class_specific else [""]
        for name, n_tokens in (("ctx", self.n_ctx), ("negative_ctx", self.n_negative_ctx)):
            contexts = [*getattr(self, name).detach()] if known_ids else []
            contexts += [self.clip.text.init_context(n_tokens, None, generator) for _ in added_ids]
            setattr(self, name, nn.Parameter(torch.stack(contexts)))  # (C, P, D), or (1, P, D) of all classes
        self.class_ids = (*known_ids, *added_ids) if self.class_specific else ()

    def precompute(self, names: Names) -> tuple[list[str], list[str], Tensor | None]:
        indices = None
        if self.class_specific:
            indices = find_class_indices(self.class_ids, names, "a class-specific context").to(self.ctx.device)
        texts, negative_texts = (
            fill_class_texts(self.context_template, names, n) for n in (self.n_ctx, self.n_negative_ctx)
        )
        return texts, negative_texts, indices

    def prepare(self, names: Names, fixed: tuple[list[str], list[str], Tensor | None]) -> tuple[Tensor, Tensor]:
        texts, negative_texts, indices = fixed
        pairs = (texts, self.ctx), (negative_texts, self.negative_ctx)
        features = [
            self.clip.text(words, Prompt(tokens={0: ctx if indices is None else ctx[indices][None]}))[0]
            for words, ctx in pairs
        ]
        return features[0], features[1]  # (C, E) each

    def forward(self, inputs: Images, prepared: tuple[Tensor, Tensor]) -> Output:
        regions = self.clip.unit(self.clip.image(inputs, output="regions").float())  # (B, 1 + N, E)
        with torch.autocast(regions.device.type, enabled=False):  # differences of cosines are small
            present, absent = (regions @ self.clip.unit(text.float()).T for text in prepared)  # (B, 1 + N, C)
        weights = (self.sharpness * present).softmax(1)
        logits = self.scale * (weights * (present - absent)).sum(1)
        return Output(logits, text_features=prepared[0])
