"""TPT: Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in VLMs", NeurIPS 2022, arXiv:2209.07511.

For each test image by itself the context takes one step that makes the answers to its augmented views agree (the
entropy of their mean falls), over the views that CLIP is surest about; then the image is judged and the step forgotten.
Sites: soft tokens at layer 0 of the text tower, another set per image.

Differs from the authors' code in: the images of a batch take their steps side by side (the same numbers; a batch bounds
the memory); views are pure functions of the image; augmix is torchvision's. From the paper in: nothing.

Expected (domain generalisation, ViT-B/16): V2 63.45, Sketch 47.94, A 54.77, R 77.06, mean 60.81; after CoOp
(learn=True) 66.83, 49.29, 57.95, 77.27, mean 62.84.
"""

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.adapters import hold
from vlprompt.layers.class_texts import holes
from vlprompt.metrics import entropy


class TPT(Method):
    """Context words that are tuned on each test image.

    n_ctx, init, text: as in CoOp; learn: train the context on the lesson first, as CoOp does; views: augmented views
    beside the image as it is; keep: the share of them with the lowest entropy that is used; lr, weight_decay, steps: of
    AdamW; augment: "crop-flip", "crop", or "augmix" as the authors use for fine-grained sets.
    """

    ctx: Tensor

    def __init__(
        self,
        clip: Clip,
        n_ctx: int | None = None,
        init: str | None = "a photo of a",
        text: str = "{ctx} {name}.",
        learn: bool = False,
        views: int = 63,
        keep: float = 0.1,
        lr: float = 0.005,
        weight_decay: float = 0.01,
        steps: int = 1,
        augment: str = "crop-flip",
    ):
        super().__init__()
        self.clip, self.n_ctx, self.init, self.text, self.learn, self.views = clip, n_ctx, init, text, learn, views
        self.keep, self.lr, self.weight_decay, self.steps, self.augment = keep, lr, weight_decay, steps, augment

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(views=0, steps=0, keep=0)
        if not lesson.index:
            hold(self, "ctx", self.clip.text.context(self.n_ctx, self.init, generator), self.learn)  # (P, D)

    def fixed(self, names: Names) -> list[str]:
        return holes(self.text, names, len(self.ctx))

    def prepare(self, names: Names, fixed: list[str]) -> list[str]:
        return fixed

    def forward(self, inputs: Images, prepared: list[str]) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        if self.training:
            text = self.clip.text(prepared, Prompt(tokens={0: self.ctx[None]}))[0]  # (C, E)
        else:
            views = torch.stack([image, *(self.clip.image(inputs.view(self.augment, k)) for k in range(self.views))])
            text = self.clip.text(prepared, Prompt(tokens={0: self.tuned(views, prepared)}))  # (B, C, E)
        return Output(self.clip.logits(image, text), image=image, text=text)

    def tuned(self, views: Tensor, texts: list[str]) -> Tensor:
        """The context of each image after its steps (B, P, D); views (1 + V, B, E)."""
        with torch.enable_grad():
            ctx = nn.Parameter(self.ctx.detach().expand(views.shape[1], -1, -1).clone())
            optimizer = torch.optim.AdamW([ctx], self.lr, weight_decay=self.weight_decay)
            chosen, seen = None, self.clip.unit(views).movedim(0, -1)  # (B, E, 1 + V)
            for _ in range(self.steps):
                text = self.clip.text(texts, Prompt(tokens={0: ctx}))  # (B, C, E)
                logits = self.clip.scale * (self.clip.unit(text) @ seen).float().movedim(-1, 0)  # (1 + V, B, C)
                if chosen is None:  # the surest views, chosen once
                    count = max(1, int(len(views) * self.keep))
                    chosen = entropy(logits.detach().softmax(-1)).argsort(0)[:count]  # (k, B)
                kept = torch.take_along_dim(logits, chosen[..., None], 0).softmax(-1)
                [ctx.grad] = torch.autograd.grad(entropy(kept.mean(0)).sum(), [ctx])  # each image's own, side by side
                optimizer.step()
        return ctx.detach()
