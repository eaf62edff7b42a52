"""PromptStyler: Cho et al., "Prompt-driven Style Generation for Source-free Domain Generalization", arXiv:2307.15199.

Without any image, style words are learned one after another, each unlike the earlier ones and true to the class names,
and a linear classifier of image features learns from the texts of all classes in all styles. Sites: none in its
answers; styles are soft tokens at layer 0 of the text tower while they are learned.

Differs from PromptTA's re-implementation (the authors released none) in: a finished style is frozen (there momentum and
weight decay may move it on); no epoch is chosen by a test; float32. As there, the loss is a cross-entropy; loss=arcface
is the paper's, on normalised weights (there they are not). A stream has the styles of its first lesson.

Expected (ViT-B/16, another paper's table): PACS 97.2, VLCS 82.9, Office-Home 83.6, DomainNet 59.4.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.templates import PromptTemplate
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.layers.heads import find_class_indices
from vlprompt.layers.initial_values import draw_uniform
from vlprompt.runtime.seeding import make_generator


def compute_arcface_loss(cosines: Tensor, labels: Tensor, scale: float = 5.0, margin: float = 0.5) -> Tensor:
    """Compute the mean loss of cosines (B, C) whose angle to the label's class is widened by a margin."""
    rows = torch.arange(len(labels), device=cosines.device)
    angle = cosines[rows, labels].clamp(-1 + 1e-7, 1 - 1e-7).acos()
    return F.cross_entropy(scale * cosines.index_put((rows, labels), (angle + margin).cos()), labels)


def _make_optimizer(x: Tensor, lr: float, steps: int) -> tuple[SGD, CosineAnnealingLR]:
    return (sgd := SGD([x], lr, momentum=0.9, weight_decay=5e-4)), CosineAnnealingLR(sgd, steps)


class PromptStyler(Method):
    """A classifier of images that is learned from class texts in learned styles.

    Args:
        clip: frozen CLIP.
        n_styles: number of styles (K).
        n_ctx: tokens of a style.
        style_template: where style and class name stand; what comes before the name is the text of a style alone.
        style_steps, style_lr: steps of each style, and their learning rate, which falls by a cosine.
        epochs, batch_size, lr: training of the classifier on the K x C texts, whose rate falls by a cosine too.
        loss: of the classifier.
    """

    styles: Tensor  # (K, P, D)
    weight: Tensor  # (C, E)

    def __init__(self, clip: Clip, n_styles: int = 80, n_ctx: int = 1,
                 style_template: str = "A {ctx} style of a {name}.", style_steps: int = 100, style_lr: float = 0.002,
                 epochs: int = 50, batch_size: int = 128, lr: float = 0.05,
                 loss: Literal["cross_entropy", "arcface"] = "cross_entropy"):  # fmt: skip
        super().__init__()
        self.clip, self.n_styles, self.n_ctx, self.style_template = clip, n_styles, n_ctx, style_template
        self.style_steps, self.style_lr, self.epochs, self.batch_size = style_steps, style_lr, epochs, batch_size
        self.lr, self.loss, self.names = lr, loss, ()

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(n_styles=1, n_ctx=1, style_steps=1, epochs=1, batch_size=1)
        if not lesson.index:
            contexts = [self.clip.text.init_context(self.n_ctx, None, generator) for _ in range(self.n_styles)]
            self.register_buffer("styles", torch.stack(contexts))
            self.register_buffer("weight", torch.zeros(0, self.clip.feature_dim, device=self.clip.device))
            self.names: Names = ()
        added = [n for n in lesson.train.names if class_ids((n,))[0] not in class_ids(self.names)]
        self.names, self.has_new_names = (*self.names, *added), bool(added)
        bound = self.clip.feature_dim**-0.5
        rows = draw_uniform((len(added), self.clip.feature_dim), -bound, bound, generator)
        self.weight = torch.cat([self.weight, rows.to(self.clip.device)])
        self.order_seed = int(torch.randint(2**31, (), generator=generator))

    def end_lesson(self, lesson: Lesson) -> None:
        with torch.enable_grad():
            if not lesson.index:
                self._train_styles(lesson.train.names)
            if self.has_new_names:
                self._train_classifier()

    def list_texts(self, names: Names) -> list[str]:
        """List the text of a style alone, and of each class in it."""
        style = PromptTemplate.parse(self.style_template.partition("{name}")[0].rstrip(), self.n_ctx)
        return [style.fill({}), *fill_class_texts(self.style_template, names, self.n_ctx)]

    def compute_style_losses(
        self, style: Tensor, earlier: Tensor, texts: Sequence[str], content: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compare a style (P, D) with normalised features of earlier styles (I, E) and of names alone (C, E)."""
        encoded = self.clip.unit(self.clip.text(texts, Prompt(tokens={0: style[None]}))[0])  # (1 + C, E)
        likeness = (encoded[:1] @ earlier.T).abs().sum() / max(len(earlier), 1)
        return likeness, F.cross_entropy(encoded[1:] @ content.T, torch.arange(len(content), device=content.device))

    def _train_styles(self, names: Names) -> None:
        texts, unit = self.list_texts(names), self.clip.unit
        content = unit(self.clip.text(fill_class_texts("{name}", names))[0])
        earlier = content[:0]
        for i in range(self.n_styles):
            style = self.styles[i].clone().requires_grad_(True)
            optimizer, schedule = _make_optimizer(style, self.style_lr, self.style_steps)
            for _ in range(self.style_steps):
                losses = self.compute_style_losses(style, earlier, texts, content)
                [style.grad] = torch.autograd.grad(losses[0] + losses[1], [style])
                optimizer.step()
                schedule.step()
            self.styles[i] = style = style.detach()
            earlier = torch.cat([earlier, unit(self.clip.text(texts[:1], Prompt(tokens={0: style[None]}))[0])])

    @torch.no_grad()
    def compute_text_features(self, names: Names) -> Tensor:
        """Compute the normalised features (K C, E) of all classes in all styles, one style after another."""
        encoded = self.clip.text(self.list_texts(names)[1:], Prompt(tokens={0: self.styles}))  # (K, C, E)
        return self.clip.unit(encoded).flatten(0, 1)

    def compute_classifier_loss(self, features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        if self.loss == "arcface":
            return compute_arcface_loss(features @ self.clip.unit(weight).T, labels)
        return F.cross_entropy(features @ weight.T, labels)

    def _train_classifier(self) -> None:
        features, weight = self.compute_text_features(self.names), self.weight.clone().requires_grad_(True)
        optimizer, schedule = _make_optimizer(weight, self.lr, self.epochs)
        for epoch in range(self.epochs):
            order = torch.randperm(len(features), generator=make_generator(self.order_seed, epoch))
            for rows in order.to(features.device).split(self.batch_size):
                loss = self.compute_classifier_loss(features[rows], rows % len(self.names), weight)
                [weight.grad] = torch.autograd.grad(loss, [weight])
                optimizer.step()
            schedule.step()
        self.weight = weight.detach()

    def precompute(self, names: Names) -> Tensor:
        rows = find_class_indices(class_ids(self.names), names, "promptstyler").to(self.weight.device)
        return self.clip.unit(self.weight[rows]) if self.loss == "arcface" else self.weight[rows]

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.clip.unit(image) @ prepared.T, image_features=image)
