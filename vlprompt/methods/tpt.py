"""TPT: Shu et al., "Test-Time Prompt Tuning for Zero-Shot Generalization in VLMs", NeurIPS 2022, arXiv:2209.07511.

For each test image separately the context takes one step that makes the predictions for its augmentations agree (the
entropy of their mean falls), over the most confident of them; then the image is classified and the step undone.
Sites: soft tokens at layer 0 of the text tower, another set per image. Use: test time.

Differs from the authors' code in: the images of a batch take their steps together (the same numbers; a batch bounds
the memory); augmentations are pure functions of the image; augmix is torchvision's. From the paper in: nothing.

Expected (domain generalisation, ViT-B/16): V2 63.45, Sketch 47.94, A 54.77, R 77.06, mean 60.81; after CoOp
(train_context=True) 66.83, 49.29, 57.95, 77.27, mean 62.84.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.adapters import register_tensor
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.methods._views import count_confident, encode_views, order_by_confidence, require_view_settings
from vlprompt.metrics import entropy


class TPT(Method):
    """Context tokens that are tuned on each test image.

    Args:
        clip: frozen CLIP.
        n_ctx, init_text, context_template: as in CoOp.
        train_context: whether the context is first trained on the lesson, as CoOp does.
        augmentations: number of augmentations of an image, which is used too.
        confident_fraction: of these, those with the lowest entropy that are used.
        lr, weight_decay, steps: of AdamW.
        augment: "crop-flip", "crop", or "augmix" as the authors use for fine-grained sets.
    """

    depends_on_class_set = True
    ctx: Tensor

    def __init__(
        self,
        clip: Clip,
        n_ctx: int | None = None,
        init_text: str | None = "a photo of a",
        context_template: str = "{ctx} {name}.",
        train_context: bool = False,
        augmentations: int = 63,
        confident_fraction: float = 0.1,
        lr: float = 0.005,
        weight_decay: float = 0.01,
        steps: int = 1,
        augment: str = "crop-flip",
    ):
        super().__init__()
        self.clip, self.n_ctx, self.init_text, self.context_template = clip, n_ctx, init_text, context_template
        self.train_context, self.augmentations, self.augment = train_context, augmentations, augment
        self.confident_fraction, self.lr, self.weight_decay, self.steps = confident_fraction, lr, weight_decay, steps

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        require_view_settings(self)
        self.require_at_least(steps=0)
        if not lesson.index:
            ctx = self.clip.text.init_context(self.n_ctx, self.init_text, generator)  # (P, D)
            register_tensor(self, "ctx", ctx, self.train_context)

    def precompute(self, names: Names) -> list[str]:
        return fill_class_texts(self.context_template, names, len(self.ctx))

    def prepare(self, names: Names, fixed: list[str]) -> list[str]:
        return fixed

    def forward(self, inputs: Images, prepared: list[str]) -> Output:
        if self.training:
            image = self.clip.image(inputs)  # (B, E)
            text = self.clip.text(prepared, Prompt(tokens={0: self.ctx[None]}))[0]  # (C, E)
        else:
            views = encode_views(self.clip, inputs, self.augment, self.augmentations)
            image, ctx = views[0], self.tune_context(views, prepared)
            text = self.clip.text(prepared, Prompt(tokens={0: ctx}))  # (B, C, E)
        return Output(self.clip.logits(image, text), image_features=image, text_features=text)

    def compute_loss(self, p: Tensor, text: Tensor) -> Tensor:
        """Compute what a step lowers (B,), from probabilities (n, B, C) of confident views and unit texts (B, C, E)."""
        return entropy(p.mean(0))

    def tune_context(self, views: Tensor, texts: list[str]) -> Tensor:
        """Tune the context of each image (B, P, D) on its views (1 + A, B, E)."""
        with torch.enable_grad():
            ctx = nn.Parameter(repeat(self.ctx.detach(), "p d -> b p d", b=views.shape[1]).clone())
            optimizer = torch.optim.AdamW([ctx], self.lr, weight_decay=self.weight_decay)
            chosen, features = None, rearrange(self.clip.unit(views), "a b e -> b e a")
            for _ in range(self.steps):
                text = self.clip.unit(self.clip.text(texts, Prompt(tokens={0: ctx})))  # (B, C, E)
                logits = self.clip.scale * rearrange((text @ features).float(), "b c a -> a b c")
                if chosen is None:  # the most confident ones, chosen once
                    n = count_confident(len(views), self.confident_fraction)
                    chosen = order_by_confidence(logits.detach())[:n]  # (n, B)
                p = torch.take_along_dim(logits, chosen[..., None], 0).softmax(-1)
                loss = self.compute_loss(p, text).sum()  # the sum keeps images independent
                [ctx.grad] = torch.autograd.grad(loss, [ctx])
                optimizer.step()
        return ctx.detach()
