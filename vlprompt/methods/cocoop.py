"""CoCoOp: Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557.

CoOp's context plus a vector that a small network computes from each image, so that every image has its own prompts;
classes that were not seen in training lose less. Sites: soft tokens at layer 0 of the text tower, another set per
image.

Differs from the authors' code in: a whole batch runs at once instead of a loop over images (the same numbers;
`train.micro_batch_size` bounds the memory), so it can train with more than one image a step; the context is float32.
From the paper in: nothing.

Expected (base-to-new, ViT-B/16, 16 shots, mean of 11 sets): base 80.47, new 71.69, harmonic mean 75.83 (the paper's
Table 1).
"""

import torch
from torch import nn

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.layers.initial_values import make_linear


class CoCoOp(Method):
    """Soft tokens of the text tower that depend on the image.

    Args:
        clip: frozen CLIP.
        n_ctx: number of context tokens; default 4, or as many as `init_text` has.
        init_text: words to start from instead of N(0, 0.02).
        context_template: where context and class name stand.
        reduction: the joint width over the hidden width of the network.
    """

    def __init__(
        self,
        clip: Clip,
        n_ctx: int | None = None,
        init_text: str | None = None,
        context_template: str = "{ctx} {name}.",
        reduction: int = 16,
    ):
        super().__init__()
        self.clip, self.n_ctx, self.init_text = clip, n_ctx, init_text
        self.context_template, self.reduction = context_template, reduction

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        if lesson.index:
            return
        n_ctx = 4 if self.n_ctx is None and self.init_text is None else self.n_ctx
        self.ctx = nn.Parameter(self.clip.text.init_context(n_ctx, self.init_text, generator))  # (P, D)
        dim, device = self.clip.feature_dim, self.clip.device
        hidden_dim = max(1, dim // self.reduction)
        down = make_linear(dim, hidden_dim, generator, device)
        up = make_linear(hidden_dim, self.clip.text.dim, generator, device)
        self.meta = nn.Sequential(down, nn.ReLU(), up)

    def precompute(self, names: Names) -> list[str]:
        return fill_class_texts(self.context_template, names, len(self.ctx))

    def prepare(self, names: Names, fixed: list[str]) -> list[str]:
        return fixed

    def forward(self, inputs: Images, prepared: list[str]) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        ctx = self.ctx + self.meta(self.clip.unit(image))[:, None]  # (B, P, D)
        text = self.clip.text(prepared, Prompt(tokens={0: ctx}))  # (B, C, E)
        return Output(self.clip.logits(image, text), image_features=image, text_features=text)
