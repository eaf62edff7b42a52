"""CoPrompt: Roy and Etemad, "Consistency-guided Prompt Learning for Vision-Language Models", ICLR 2024.

arXiv:2306.01195. A prompt method, the paper's is MaPLe, with an adapter on each feature, stays consistent with the
frozen CLIP: the feature of an image with the frozen one of a second augmentation, the text of a class with the frozen
one of a sentence that a language model wrote about it, drawn anew at each step with one number for all classes. Sites:
those of the wrapped method.

Differs from the authors' code in: classes may have different numbers of sentences (theirs are stacked): number k is
sentence k modulo their number; sentences of new classes, which theirs reads and never uses, are not needed; RandAugment
is torchvision's; float32. Their table of settings per dataset, which overrides the command line there, was chosen
without validation images: the recipes have it and say so. From the paper in: nothing.

Expected (base-to-new, ViT-B/16, 16 shots, mean of 11 sets): base 84.00, new 77.23, harmonic mean 80.48; another run of
their code (SkipTuning's) 82.89, 75.32, 78.93, and several users could not repeat the paper's.
"""

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.head import Fixed, Prepared
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.method_wrapper import MethodWrapper
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_descriptions import read_descriptions
from vlprompt.layers.initial_values import make_linear
from vlprompt.methods._views import require_augmentation
from vlprompt.runtime.seeding import make_generator


class _Sentences:
    """Sentences about classes, which only a training reads.

    Args:
        clip: the frozen CLIP.
        path: the file of descriptions.
        names: the classes.
    """

    def __init__(self, clip: Clip, path: str | None, names: Names):
        self.clip, self.path, self.names = clip, path, names

    @cached_property
    def features(self) -> list[Tensor]:
        """Normalised features (S, E) of the sentences of each class."""
        if self.path is None:
            raise ValueError(
                "method.descriptions: expected a file of sentences about each class, such as a language model's, got "
                'none. Write JSON {"class name": ["a sentence", ...]}, and set method.descriptions to its path.'
            )
        sentences = read_descriptions(self.path, self.names)
        with torch.no_grad(), torch.autocast(self.clip.device.type, enabled=False):
            features = self.clip.unit(self.clip.text([text for texts in sentences for text in texts])[0])
        return list(features.split([len(texts) for texts in sentences]))

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return one sentence's feature (C, E) of each class, with the same number for all."""
        number = int(torch.randint(max(map(len, self.features)), (1,), generator=generator))
        return torch.stack([of_class[number % len(of_class)] for of_class in self.features])


class CoPrompt(MethodWrapper):
    """A prompt method with adapters on its features, consistent with the frozen CLIP.

    Args:
        method: the wrapped method, on a CLIP; it learns by cross-entropy alone.
        descriptions: path of a JSON or YAML file {class name or id: [sentences]} (~ is the home folder), which training
            needs for the classes that are trained on.
        weight: of the distances to the frozen features (lambda).
        distance: "cosine" for 1 - mean cosine, "mse" for the mean squared difference of normalised features.
        image_ratio, text_ratio: share of the adapted feature in the sum with the plain one.
        reduction: the joint width over the hidden width of the adapters.
        augment: augmentation of the second view; that of the first is task.augment.
    """

    uses = ("llm_texts",)

    def __init__(
        self,
        method: Method,
        descriptions: str | None = None,
        weight: float = 8.0,
        distance: Literal["cosine", "mse"] = "cosine",
        image_ratio: float = 0.1,
        text_ratio: float = 0.2,
        reduction: int = 4,
        augment: str = "randaugment",
    ):
        super().__init__()
        self.method, self.descriptions, self.weight, self.distance = method, descriptions, weight, distance
        self.image_ratio, self.text_ratio, self.reduction, self.augment = image_ratio, text_ratio, reduction, augment

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(weight=0, image_ratio=0, text_ratio=0, reduction=1)
        self.require_at_most(image_ratio=1, text_ratio=1)
        if type(self.method).loss_terms is not Method.loss_terms:
            raise ValueError(
                f"method.method: expected a method that learns by cross-entropy alone, such as maple, got "
                f"{type(self.method).__name__}. Wrappers such as dept go around coprompt."
            )
        require_augmentation(self.augment)
        dim, device = self.clip.feature_dim, self.clip.device
        super().begin_lesson(lesson, generator)
        self.draw_seed = int(torch.randint(2**31, (1,), generator=generator))
        if lesson.index:
            return
        self.adapters, hidden_dim = nn.ModuleDict(), max(1, dim // self.reduction)
        for tower in ("image", "text"):
            down = make_linear(dim, hidden_dim, generator, device, bias=False)
            up = make_linear(hidden_dim, dim, generator, device, bias=False)
            self.adapters[tower] = nn.Sequential(down, nn.ReLU(), up, nn.ReLU())

    def reference_texts(self, names: Names) -> _Sentences:
        return _Sentences(self.clip, self.descriptions, names)

    def forward(self, inputs: Images, prepared: Prepared) -> Output:
        out: Output = self.method(inputs, prepared)
        image, text = self.require_image_features(out), self.require_text_features(out)
        image = self.image_ratio * self.adapters["image"](image) + (1 - self.image_ratio) * image
        text = self.text_ratio * self.adapters["text"](text) + (1 - self.text_ratio) * text
        return out._replace(logits=self.clip.logits(image, text), image_features=image, text_features=text)

    def loss_terms(self, batch: Batch, fixed: Fixed) -> tuple[LossTerms, Output]:
        terms, out = Method.loss_terms(self, batch, fixed)
        view = self.clip.unit(self.clip.image(batch.inputs.augment(self.augment, batch.step)))  # (B, E), frozen
        sentence = fixed[1].draw(make_generator(self.draw_seed, "sentence", batch.step))  # (C, E)
        pairs = {"image": (self.require_image_features(out), view), "text": (self.require_text_features(out), sentence)}
        n = len(batch.labels)
        return terms | {name: (self.weight * self.measure(*pair), n) for name, pair in pairs.items()}, out

    def measure(self, features: Tensor, frozen: Tensor) -> Tensor:
        """Mean distance between features (.., E) and frozen ones, which are normalised."""
        if self.distance == "cosine":
            return 1 - (self.clip.unit(features) * frozen).sum(-1).mean()
        return (self.clip.unit(features) - frozen).square().mean()
