"""CoCoOp: Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557.

CoOp's context plus a vector that a small network makes from each image, so that every image has its own prompts;
classes that were not seen in training lose less. Sites: soft tokens at layer 0 of the text tower, another set per
image.

Differs from the authors' code in: a whole batch runs at once instead of a loop over images (the same numbers;
`train.micro_batch` bounds the memory), so it can train with more than one image a step; the context is float32. From
the paper in: nothing.

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
from vlprompt.layers.adapters import dense
from vlprompt.layers.class_texts import holes


class CoCoOp(Method):
    """Context words that depend on the image.

    n_ctx: tokens of context (default 4, or as many as `init` has); init: words to start from instead of N(0, 0.02);
    text: where context and name stand; reduction: the hidden width of the network is the joint width over this.
    """

    def __init__(
        self,
        clip: Clip,
        n_ctx: int | None = None,
        init: str | None = None,
        text: str = "{ctx} {name}.",
        reduction: int = 16,
    ):
        super().__init__()
        self.clip, self.n_ctx, self.init, self.text, self.reduction = clip, n_ctx, init, text, reduction

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        if lesson.index:
            return
        n = 4 if self.n_ctx is None and self.init is None else self.n_ctx
        self.ctx = nn.Parameter(self.clip.text.context(n, self.init, generator))  # (P, D)
        wide, small = self.clip.width, max(1, self.clip.width // self.reduction)
        down = dense(wide, small, generator, self.clip.device)
        self.meta = nn.Sequential(down, nn.ReLU(), dense(small, self.clip.text.dim, generator, self.clip.device))

    def fixed(self, names: Names) -> list[str]:
        return holes(self.text, names, len(self.ctx))

    def forward(self, inputs: Images, prepared: list[str]) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        ctx = self.ctx + self.meta(self.clip.unit(image))[:, None]  # (B, P, D)
        text = self.clip.text(prepared, Prompt(tokens={0: ctx}))  # (B, C, E)
        return Output(self.clip.logits(image, text), image=image, text=text)

    def prepare(self, names: Names, fixed: list[str]) -> list[str]:
        return fixed
