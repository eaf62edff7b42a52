"""ENGINE: Zhou et al., "External Knowledge Injection for CLIP-Based Class-Incremental Learning", ICCV 2025.

arXiv:2503.08510. Each lesson adds a linear map of the frozen image feature and one of the text feature, whose sums stay
near a language model's sentence about the class and a noisy image. An answer is mostly that of Gaussian classes over
the class token before its projection, then that of the maps, whose best classes are ranked again by what each has and
the others have not. Sites: none; features are computed once, those of noisy images anew. Use: streams.

Differs from the authors' code in: sentences are against classes so far (theirs: later ones too), and an answer takes
all of a pair (theirs: three random draws); what theirs adds to the inverse covariance besides, which changes nothing,
is left out; underscores in names are spaces. As there, pixels are clamped to 0 and 1 after the normalisation, images of
one class are negatives of each other, and inverse covariances of lessons are averaged (gda sums covariances). From the
paper in: not compared.

State (ViT-B/16): 8 E^2 + 8 E bytes a lesson (2.1 MB), 8 D + 4 E + 8 a class (8 kB), 8 D^2 + 8 (4.7 MB).

Expected: no published number that was checked.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images, PixelBatch
from vlprompt.core.method import LossTerms, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, find_preprocessing
from vlprompt.layers.class_texts import TemplateChoice
from vlprompt.layers.feature_statistics import AveragedGaussians
from vlprompt.layers.heads import find_class_indices
from vlprompt.methods._descriptions import PairSentences, draw_sentences, rank_again
from vlprompt.methods._feature_maps import FeatureMapMethod, compute_contrast
from vlprompt.runtime.seeding import make_generator

NOISE = 0.25  # of the second image's pixels


class _Fixed(NamedTuple):
    """Texts (K, C, E), once mapped (C, E); sentences (C, C, E) of pairs; Gaussian weights (C, D) and biases (C,)."""

    text: Tensor
    pairs: Tensor | None
    weights: Tensor
    biases: Tensor


class ENGINE(FeatureMapMethod):
    """Maps of each lesson on both features, Gaussian classes, and sentences that tell classes apart.

    Args:
        clip: frozen CLIP.
        descriptions: path of a JSON or YAML file {class name or id: {other class: text or [texts]}} of what each class
            has and the other one has not (~ is the home folder).
        text_weight: of the distance to a sentence in the loss (text_des).
        image_weight: of the distance to a noisy image in the loss (image_aug).
        rerank_weight: share of the second ranking in the answer of the maps.
        gaussian_weight: share of the Gaussian classes in the answer (stat).
        n_reranked: best classes that are ranked again.
        prototype_noise: of the mean features that stand for earlier classes (sample_noise).
        template: of the class texts; of several, training reads the first.
    """

    sums: Tensor  # (C, E), of features

    def __init__(
        self,
        clip: Clip,
        descriptions: str | None = None,
        text_weight: float = 2.0,
        image_weight: float = 2.0,
        rerank_weight: float = 0.8,
        gaussian_weight: float = 0.8,
        n_reranked: int = 5,
        prototype_noise: float = 0.25,
        template: TemplateChoice = None,
    ):
        super().__init__()
        self.clip, self.descriptions, self.template, self.gaussians = clip, descriptions, template, AveragedGaussians()
        self.text_weight, self.image_weight, self.rerank_weight = text_weight, image_weight, rerank_weight
        self.gaussian_weight, self.n_reranked, self.prototype_noise = gaussian_weight, n_reranked, prototype_noise
        self.uses = ("llm_texts",) if text_weight or rerank_weight else ()

    @torch.no_grad()
    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        positive = ("text_weight", "image_weight", "rerank_weight", "gaussian_weight", "prototype_noise")
        self.require_at_least(n_reranked=2, **dict.fromkeys(positive, 0.0))
        self.require_at_most(rerank_weight=1, gaussian_weight=1)
        self.begin_maps(lesson, generator, trains_earlier_texts=False)
        self.gaussians.begin_lesson(len(self.names), not lesson.index, self.clip.image.dim, self.clip.device)
        self.grow_buffer("sums", self.clip.feature_dim)
        self.training_inputs = None
        groups = self.group_features(lesson.train, "class")
        self.is_new = torch.tensor([row in groups for row in range(len(self.names))], device=self.clip.device)
        if groups:
            x, labels = torch.cat(list(groups.values())), [row for row, x in groups.items() for _ in x]
            self.gaussians.add(self.clip.unit(x), torch.tensor(labels, device=x.device))
            for row, x in groups.items():
                self.sums[row] += self.project(x).sum(0)

    def precompute(self, names: Names) -> _Fixed:
        rows = find_class_indices(class_ids(self.names), names, "ENGINE").to(self.sums.device)
        weights, biases = self.gaussians.build_classifier(rows)
        pairs = PairSentences(self.clip, self.descriptions, names).stack_pairs() if self.rerank_weight else None
        return _Fixed(self.encode_texts(names), pairs, weights, biases)

    def prepare(self, names: Names, fixed: _Fixed) -> _Fixed:
        return fixed._replace(text=self.map_texts(fixed.text))

    def forward(self, inputs: Images, prepared: _Fixed) -> Output:
        row = self.clip.image(inputs, output="class")  # (B, D)
        image = self.project(row)
        mapped = self.map_features(image, self.image_maps)
        logits = self.clip.unit(mapped) @ prepared.text.T
        if prepared.pairs is not None:
            again = rank_again(logits, self.clip.unit(image), prepared.pairs, self.n_reranked)
            logits = torch.lerp(logits, again, self.rerank_weight)
        gaussian = self.clip.unit(self.clip.unit(row).double() @ prepared.weights.T + prepared.biases)
        logits = torch.lerp(logits.double(), gaussian, self.gaussian_weight).to(image.dtype)
        return Output(logits, image_features=mapped, text_features=prepared.text)

    def encode_noisy(self, inputs: Images, step: int) -> Tensor:
        """Encode the normalised features (B, E) of noisy images."""
        with torch.no_grad(), torch.autocast(self.clip.device.type, enabled=False):
            pixels = inputs.pixels(find_preprocessing(self.clip)).to(self.clip.device)
            noise = NOISE * self.draw_noise("pixels", step, *pixels.shape)
            return self.clip.unit(self.clip.image(PixelBatch((pixels + noise).clamp(0, 1))))

    def loss_terms(self, batch: Batch, fixed: _Fixed) -> tuple[LossTerms, Output]:
        if self.training_inputs is None:
            source = PairSentences(self.clip, self.descriptions, self.names) if self.text_weight else None
            self.training_inputs = self.encode_texts(self.names)[0], source and source.stack_by_class()
        (text, sentences), earlier = self.training_inputs, ((self.gaussians.counts > 0) & ~self.is_new).nonzero()[:, 0]
        noise = self.prototype_noise * self.draw_noise("prototypes", batch.step, len(earlier), text.shape[1])
        prototypes = self.sums[earlier] / self.gaussians.counts[earlier, None].float() + noise
        labels, image = torch.cat([self.find_labels(batch), earlier]), self.clip.image(batch.inputs, output="class")
        image = self.clip.unit(self.map_features(torch.cat([self.project(image), prototypes]), self.image_maps))
        text = self.clip.unit(self.map_features(text, self.text_maps))[labels]
        n, losses = len(batch.labels), {"contrast": compute_contrast(math.log(self.clip.scale) * image @ text.T)}
        if sentences is not None:
            drawn = draw_sentences(sentences, labels, make_generator(self.draw_seed, "sentences", batch.step))
            near = text @ self.clip.unit(drawn).T
            losses["text"] = self.text_weight * compute_contrast(near, both=False)
        if self.image_weight:
            near = image[:n] @ self.encode_noisy(batch.inputs, batch.step).T
            losses["image"] = self.image_weight * compute_contrast(near, both=False)
        return {name: (loss, n) for name, loss in losses.items()}, Output(image[:n] @ text.T)
