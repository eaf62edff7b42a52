"""PLOT: Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", ICLR 2023.

arXiv:2210.01253. Several contexts give each class a set of texts, which is compared with the set of an image's patch
features: a class scores the mean cosine under the optimal transport plan between both, so that contexts may attend to
different parts of an image. Sites: soft tokens at layer 0 of the text tower, one set per context; features of patches.

Differs from the authors' code in: the plan of an image and a class stops by itself, theirs when the mean change over
all images and classes of the batch is small, so that an answer depends on the batch and on the list of classes; where
their plan is NaN the model returns nothing, ours fails; any CLIP with features of patches, theirs is a ResNet with its
sizes written in; float32 (theirs half precision). From the paper in: nothing else.

Expected (few-shot, RN50): no number that could be checked; the authors publish those of PLOT++ alone.
"""

from typing import cast

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, VisionTower
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.layers.optimal_transport import MIN_EPSILON, compute_transport_scores


class PLOT(Method):
    """Several contexts of the text tower, matched to the patches of an image by optimal transport.

    Args:
        clip: frozen CLIP with features of patches.
        n_prompts: number of contexts (N).
        n_ctx: tokens of each.
        context_template: where context and class name stand.
        pooled: add the logits of the pooled image feature and the mean of a class's texts, as the authors do on
            ImageNet.
        epsilon: weight of the plan's entropy.
        max_rounds: of Sinkhorn's algorithm.
        threshold: mean change of the factors of an image's patches at which the rounds of a pair end.
    """

    def __init__(
        self,
        clip: Clip,
        n_prompts: int = 4,
        n_ctx: int = 16,
        context_template: str = "{ctx} {name}.",
        pooled: bool = False,
        epsilon: float = 0.1,
        max_rounds: int = 100,
        threshold: float = 0.01,
    ):
        super().__init__()
        self.clip, self.n_prompts, self.n_ctx, self.context_template = clip, n_prompts, n_ctx, context_template
        self.pooled, self.epsilon, self.max_rounds, self.threshold = pooled, epsilon, max_rounds, threshold

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        if lesson.index:
            return
        self.require_at_least(n_prompts=1, epsilon=MIN_EPSILON, max_rounds=1, threshold=0)
        cast(VisionTower, self.clip.image).require_patch_features()
        contexts = [self.clip.text.init_context(self.n_ctx, None, generator) for _ in range(self.n_prompts)]
        self.ctx = nn.Parameter(torch.stack(contexts))  # (N, P, D)

    def precompute(self, names: Names) -> list[str]:
        return fill_class_texts(self.context_template, names, self.n_ctx)

    def prepare(self, names: Names, fixed: list[str]) -> Tensor:
        return self.clip.text(fixed, Prompt(tokens={0: self.ctx}))  # (N, C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        outputs = ("patches", "pooled") if self.pooled else ("patches",)
        patches, *pooled = cast(VisionTower, self.clip.image).read(inputs, NOTHING, outputs)  # (B, M, E), (B, E)
        rounds = self.epsilon, self.max_rounds, self.threshold
        logits, text = self.clip.scale * compute_transport_scores(patches, prepared, *rounds), prepared.mean(0)
        if not pooled:
            return Output(logits, text_features=text)
        return Output(logits + self.clip.logits(pooled[0], text), image_features=pooled[0], text_features=text)
