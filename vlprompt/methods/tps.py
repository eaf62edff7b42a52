"""TPS: Sui et al., "Just Shift It: Test-Time Prototype Shifting for Zero-Shot VLMs", WACV 2025, arXiv:2403.12952.

As TPT, but what takes the step for each test image is a shift of the class texts' features, which are computed once: no
pass of the text tower, milliseconds instead of seconds. Sites: none. Use: test time.

Differs from the authors' code in: the images of a batch take their steps together (the same numbers; a batch bounds
the memory); augmentations are pure functions of the image, augmix is torchvision's; a class finds its descriptions by
its name (theirs by its place in a list); templates count as many as they are with pooling="macro" (theirs always as
80); FiLM is left out. From the paper in: nothing.

Expected (domain generalisation, ViT-B/16, 80 templates and GPT-4's descriptions, as published, not verified): ImageNet
71.45, V2 64.91, Sketch 50.88, A 60.61, R 80.20.
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_descriptions import read_descriptions
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts, load_templates
from vlprompt.methods._views import count_confident, encode_views, order_by_confidence, require_view_settings
from vlprompt.metrics import entropy


class TPS(Method):
    """Class texts that are shifted on each test image.

    Args:
        clip: frozen CLIP.
        per_class: whether each class has a shift of its own; False for one that all share.
        scale: whether a factor of each feature is tuned too.
        augmentations: number of augmentations of an image, which is used too.
        confident_fraction: of these, those with the lowest entropy that are used.
        lr, weight_decay, steps: of AdamW.
        augment: "crop-flip", "crop", or "augmix" as the authors use for fine-grained sets.
        template: of the class texts; default the dataset's own.
        descriptions: a file of descriptions as in ZeroShot, which are joined with the templates.
        pooling: "micro" weighs templates and descriptions half and half, "macro" by their number.
    """

    depends_on_class_set = True

    def __init__(
        self,
        clip: Clip,
        per_class: bool = True,
        scale: bool = False,
        augmentations: int = 63,
        confident_fraction: float = 0.1,
        lr: float = 0.005,
        weight_decay: float = 0.01,
        steps: int = 1,
        augment: str = "crop-flip",
        template: TemplateChoice = None,
        descriptions: str | None = None,
        pooling: Literal["micro", "macro"] = "micro",
    ):
        super().__init__()
        self.clip, self.per_class, self.scale = clip, per_class, scale
        self.augmentations, self.confident_fraction, self.augment = augmentations, confident_fraction, augment
        self.lr, self.weight_decay, self.steps = lr, weight_decay, steps
        self.template, self.descriptions, self.pooling = template, descriptions, pooling

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        require_view_settings(self)
        self.require_at_least(steps=0)

    def precompute(self, names: Names) -> Tensor:
        text = encode_class_texts(self.clip, names, self.template, normalize=True)  # (C, E)
        if self.descriptions is not None:
            described = read_descriptions(self.descriptions, names)
            counts = [len(texts) for texts in described]
            features = self.clip.unit(self.clip.text([t for texts in described for t in texts])[0])
            weight = len(load_templates(self.template)) if self.pooling == "macro" else None
            text = join_texts(text, features, counts, weight)
        return self.clip.unit(text)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        views = encode_views(self.clip, inputs, self.augment, self.augmentations)
        text = self.tune(self.clip.unit(views), prepared)
        return Output(self.clip.logits(views[0], text), image_features=views[0], text_features=text)

    def tune(self, views: Tensor, text: Tensor) -> Tensor:
        """Tune the texts of each image (B, C, E) on its views (1 + A, B, E), from a shift of 0 and a factor of 1."""
        shape = views.shape[1], len(text) if self.per_class else 1, text.shape[-1]
        initial = [text.new_zeros(shape), *([text.new_ones(shape)] if self.scale else [])]
        return self.move(text, self.tune_parameters(views, text, initial))

    def move(self, text: Tensor, parameters: list[Tensor]) -> Tensor:
        """Return unit texts (B, C, E): shifted by the first of the parameters, after a factor that is the second."""
        shift, *factors = parameters
        return self.clip.unit(text * factors[0] + shift if factors else text + shift)

    def compute_logits(self, views: Tensor, text: Tensor, parameters: list[Tensor]) -> Tensor:
        """Compute the logits (1 + A, B, C) of views (1 + A, B, E)."""
        features = rearrange(views, "a b e -> b e a")
        return self.clip.scale * rearrange((self.move(text, parameters) @ features).float(), "b c a -> a b c")

    def tune_parameters(self, views: Tensor, text: Tensor, initial: list[Tensor]) -> list[Tensor]:
        """Return the shift and the factor of each image after its steps."""
        with torch.enable_grad():
            parameters, chosen = [nn.Parameter(value.detach().clone()) for value in initial], None
            optimizer = torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)
            for _ in range(self.steps):
                logits = self.compute_logits(views, text.detach(), list(parameters))
                if chosen is None:  # the most confident ones, chosen once
                    n = count_confident(len(views), self.confident_fraction)
                    chosen = order_by_confidence(logits.detach())[:n]  # (n, B)
                p = torch.take_along_dim(logits, chosen[..., None], 0).softmax(-1)
                grads = torch.autograd.grad(entropy(p.mean(0)).sum(), parameters)  # the sum keeps images independent
                for parameter, grad in zip(parameters, grads, strict=True):
                    parameter.grad = grad
                optimizer.step()
        return [parameter.detach() for parameter in parameters]


def join_texts(text: Tensor, features: Tensor, counts: list[int], weight: int | None) -> Tensor:
    """Join the mean text of the templates (C, E) with unit features of descriptions (sum of counts, E), class by class.

    Args:
        weight: how much the templates count where a description counts 1; None for half of it all.
    """
    described = torch.stack([part.mean(0) for part in features.split(counts)])
    n = torch.tensor(counts, device=text.device)[:, None]
    return (text + described) / 2 if weight is None else (weight * text + n * described) / (weight + n)
