"""PROOF: Zhou et al., "Learning without Forgetting for Vision-Language Models", TPAMI 2025, arXiv:2305.19270.

Each lesson adds a linear map of the frozen image feature and one of the text feature; a feature is the sum over all.
One attention layer fuses an image with the texts and prototypes of all classes and with context vectors of each lesson.
Exemplars of each class, chosen by herding, join the batches. Sites: none; features are computed once. Use: streams.

Differs from the authors' code in: each image is fused alone in an answer (theirs averages the fused rows over the test
batch, so that an answer depends on its neighbours; so does training, here too); exemplars are features, and each step
draws its share of them (theirs: images in the shuffled lesson); the dropout between shared rows is one for a step;
start values are torch's; underscores in names are spaces. As there, images of an answer are not normalised before the
fusion, and text maps of earlier lessons train on, which the paper freezes.

State: 8 E^2 + (8 + 4 context_length) E bytes a lesson, 4 E (n_exemplars + 1) + 8 a class (E = 512: 2.1 MB, 43 kB).

Expected (ViT-B/16 of LAION-400M, average / last, the authors' log): CIFAR-100 in 10 lessons 86.77 / 79.11, ImageNet-R
84.19 / 78.50, CUB-200 84.87 / 79.86; half of the classes first 83.33 / 79.73, 81.06 / 78.03, 81.30 / 78.92.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.blocks.attention import SharedRowAttention
from vlprompt.layers.class_texts import TemplateChoice
from vlprompt.layers.feature_statistics import select_by_herding
from vlprompt.layers.heads import find_class_indices
from vlprompt.methods._feature_maps import FeatureMapMethod, compute_contrast
from vlprompt.runtime.seeding import make_generator


class PROOF(FeatureMapMethod):
    """Maps of each lesson on both features, and a fusion of images, texts, prototypes and contexts.

    Args:
        clip: frozen CLIP.
        context_length: context vectors of each lesson.
        n_exemplars: features of each class that join later lessons.
        dropout: of the fusion's attention and of its output.
        template: of the class texts; of several, training reads the first.
    """

    sums: Tensor  # (C, E), of normalised features
    counts: Tensor  # (C,)
    exemplars: Tensor  # (C, K, E), not normalised
    exemplar_counts: Tensor  # (C,)

    def __init__(
        self,
        clip: Clip,
        context_length: int = 3,
        n_exemplars: int = 20,
        dropout: float = 0.1,
        template: TemplateChoice = None,
    ):
        super().__init__()
        self.clip, self.context_length, self.n_exemplars = clip, context_length, n_exemplars
        self.dropout, self.template = dropout, template

    @torch.no_grad()
    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(context_length=1, n_exemplars=0, dropout=0)
        self.require_at_most(dropout=1)
        self.begin_maps(lesson, generator, trains_earlier_texts=True)
        dim, device = self.clip.feature_dim, self.clip.device
        if not lesson.index:
            self.fusion, self.contexts = SharedRowAttention(dim, self.dropout, generator, device), nn.ParameterList()
            self.log_scale = nn.Parameter(torch.tensor(math.log(self.clip.scale), device=device))
        context = torch.randn(self.context_length, dim, generator=generator).to(device)
        self.contexts.requires_grad_(False).append(nn.Parameter(context))
        sizes = {"sums": (dim,), "counts": (), "exemplars": (self.n_exemplars, dim), "exemplar_counts": ()}
        for name, size in sizes.items():
            self.grow_buffer(name, *size)
        self.n_images, self.training_inputs = len(lesson.train_with_memory), None
        for row, x in self.group_features(lesson.train).items():
            self.sums[row] += self.clip.unit(x).sum(0)
            self.counts[row] += len(x)

    def precompute(self, names: Names) -> Tensor:
        return self.encode_texts(names)  # (K, C, E)

    def prepare(self, names: Names, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projected texts (C, E), and what images share: texts, prototypes, contexts (2 C + P, E)."""
        rows = find_class_indices(class_ids(self.names), names, "PROOF").to(self.sums.device)
        text = self.map_texts(fixed)
        means = self.sums[rows] / self.counts[rows].clamp(min=1)[:, None]
        prototypes = self.clip.unit(self.map_features(means, self.image_maps))
        return text, torch.cat([text, prototypes, *self.contexts])

    def forward(self, inputs: Images, prepared: tuple[Tensor, Tensor]) -> Output:
        text, shared = prepared
        image = self.map_features(self.clip.image(inputs), self.image_maps)  # (B, E)
        fused, rows = self.fusion(image, shared, 2 * len(text))
        of_text, of_prototype = (rows @ fused[..., None])[..., 0].chunk(2, 1)
        return Output(image @ text.T + of_text + of_prototype, image_features=image, text_features=text)

    def draw_exemplars(self, n: int, step: int) -> tuple[Tensor, Tensor]:
        """Draw as many exemplars (n, E) as belong to n images of the lesson, and return their classes' rows (n,)."""
        is_stored = torch.arange(self.n_exemplars, device=self.counts.device) < self.exemplar_counts[:, None]
        features, rows = self.exemplars[is_stored], is_stored.nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=make_generator(self.draw_seed, "exemplars", step))
        order = order[: round(n * len(rows) / max(self.n_images, 1))].sort().values.to(rows.device)
        return features[order], rows[order]

    def loss_terms(self, batch: Batch, fixed: Tensor) -> tuple[LossTerms, Output]:
        if self.training_inputs is None:
            self.training_inputs = self.encode_texts(self.names)[:1]
        (text, shared), n = self.prepare(self.names, self.training_inputs), len(batch.labels)
        features, rows = self.draw_exemplars(n, batch.step)
        labels, features = (
            torch.cat([self.find_labels(batch), rows]),
            torch.cat([self.clip.image(batch.inputs), features]),
        )
        image = self.clip.unit(self.map_features(features, self.image_maps))
        fused, seen = self.fusion(image, shared, 2 * len(text))
        of_text, of_prototype = (fused @ seen.mean(0).T).float().chunk(2, 1)
        losses = {"ce": F.cross_entropy(of_text, labels), "prototypes": F.cross_entropy(of_prototype, labels)}
        losses["contrast"] = compute_contrast(self.log_scale.exp() * image @ text[labels].T)
        return {name: (loss, len(labels)) for name, loss in losses.items()}, Output(of_text[:n])

    @torch.no_grad()
    def end_lesson(self, lesson: Lesson) -> None:
        """Choose the exemplars of the lesson's classes, of a class that came again among those that it had too."""
        super().end_lesson(lesson)
        for row, x in self.group_features(lesson.train).items():
            x = torch.cat([self.exemplars[row, : int(self.exemplar_counts[row])], x])
            chosen = select_by_herding(self.clip.unit(x), self.n_exemplars)
            self.exemplars[row, : len(chosen)], self.exemplar_counts[row] = x[chosen], len(chosen)
