"""TUNA: Wang, Zhou and Ye, ICCV 2025, arXiv:2508.08165.

The paper is "Integrating Task-Specific and Universal Adapters for Pre-Trained Model-based Class-Incremental Learning".
Each lesson trains a copy of the last lesson's adapters and cosines to its classes; the universal adapters are the
largest values of all lessons with the sign of the mean. A test image has the adapters whose answer has the least
entropy; its answer and the universal one's add up. Drawn features align the class vectors. Sites: mlp+. Use: streams.

It stores 4 (2 D r + D + r) bytes a layer of each lesson (ViT-B/16, r = 16: 1.2 MB) and 4 E^2 + 8 E of each class (2.4
MB; with method.spread=variance 12 E, 9 kB). An answer takes a pass for each lesson and one more.

Differs from the authors' code in: the universal adapters are read, as the paper says (as released the newest ones are);
a class without images can't win; logits are the log of the mean of both softmaxes. As there, shrinks_means shrinks
newer classes most, in groups that begin a class late, and alignment has waves of 5 epochs. From the paper in: nothing.

Expected (average and last accuracy, ViT-B/16 of IN-21k; the authors' logs): CIFAR-100 of 20 94.86 91.60; ImageNet-R of
10 84.09 79.30; ImageNet-A of 10 73.78 64.78.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.head import Fixed, Prepared
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.class_gaussians import ClassGaussians, Spread
from vlprompt.layers.heads import UniformCosineHead
from vlprompt.methods._adapter_bank import AdapterBank, build_output, validate_stream
from vlprompt.methods._alignment import AlignmentSettings, align_head
from vlprompt.methods._class_means import require_images
from vlprompt.methods._support import draw_seed

ALIGN_PERIOD = 5  # epochs


class TUNA(Method):
    """Adapters of each lesson, chosen by entropy, and universal ones.

    Args:
        tower: frozen image tower.
        bottleneck_dim: width of the bottlenecks.
        scale: factor of what they add.
        dropout: inside the bottlenecks.
        logit_scale: factor of the cosines (s).
        margin: by which the cosine of the right class is lowered in training.
        orthogonality_weight: of the overlap with earlier lessons' adapters, which falls by e with each lesson.
        shrinks_means: whether the class means are shrunk, by up to a tenth, where features are drawn.
        spread: of each class: covariance, variance or centroids.
        align_epochs: of the class vectors on drawn features, after each lesson but the first.
        align_lr: its first learning rate.
        align_samples: features of each class that it draws an epoch, and those of a step.
    """

    needs_single_labels = depends_on_class_set = True
    n_learned: Tensor

    def __init__(
        self,
        tower: VisionTower,
        bottleneck_dim: int = 16,
        scale: float = 0.1,
        dropout: float = 0.1,
        logit_scale: float = 20.0,
        margin: float = 0.0,
        orthogonality_weight: float = 0.0,
        shrinks_means: bool = False,
        spread: Spread = "covariance",
        align_epochs: int = 30,
        align_lr: float = 0.005,
        align_samples: int = 80,
    ):
        super().__init__()
        self.tower, self.bottleneck_dim, self.scale, self.dropout = tower, bottleneck_dim, scale, dropout
        self.logit_scale, self.margin, self.shrinks_means = logit_scale, margin, shrinks_means
        self.align_epochs, self.align_lr, self.align_samples = align_epochs, align_lr, align_samples
        self.orthogonality_weight = orthogonality_weight
        self.spread: Spread = spread

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(bottleneck_dim=1, dropout=0, margin=0, orthogonality_weight=0)
        self.require_at_least(align_epochs=0, align_samples=1)
        validate_stream("tuna", self.tower, lesson)
        shape = self.tower.feature_dim, self.tower.device
        if not lesson.index:
            self.bank = AdapterBank(self.tower, self.bottleneck_dim, self.scale, self.dropout)
            self.head, self.gaussians = UniformCosineHead(self.logit_scale), ClassGaussians(self.spread)
            self.register_buffer("n_learned", torch.tensor(0, device=self.tower.device))
        self.bank.add_set(generator, copies_newest=True)
        self.head.begin_lesson(lesson, generator, *shape)
        self.head.gain.requires_grad_(False)
        self.gaussians.begin_lesson(lesson.train.names, not lesson.index, *shape)
        self.seed = draw_seed(generator)

    def loss_terms(self, batch: Batch, fixed: Fixed) -> tuple[LossTerms, Output]:
        """Return CosFace, and the overlap with the adapters of earlier lessons."""
        out, n = self(batch.inputs, self.prepare(batch.names, fixed)), len(batch.labels)
        labels, t = batch.labels.to(out.logits.device), len(self.bank)
        lowered = self.logit_scale * self.margin * F.one_hot(labels, len(batch.names))
        terms: LossTerms = {"ce": (F.cross_entropy(out.logits.float() - lowered, labels), n)}
        if self.orthogonality_weight and t > 1:
            terms["overlap"] = self.orthogonality_weight * math.exp(-t) * self.bank.compute_overlap(), n
        return terms, out

    @torch.no_grad()
    def end_lesson(self, lesson: Lesson) -> None:
        """Compute the statistics of the lesson's classes, and align the class vectors."""
        if not len(lesson.train):
            return
        features, labels = self.bank.compute_features(-1, lesson.train)
        self.gaussians.add(features, labels, lesson.train.names, self.seed)
        self.n_learned.fill_(len(self.bank))
        if lesson.index:
            settings = AlignmentSettings(self.align_epochs, self.align_lr, self.align_samples, period=ALIGN_PERIOD)
            factors = self.compute_mean_factors(len(lesson.train.names)) if self.shrinks_means else None
            align_head(self.head, self.gaussians, self.seed, settings, factors)

    def compute_mean_factors(self, n_names: int) -> list[float]:
        """Compute by how much the mean of each class is shrunk, from the number of classes of a lesson."""
        groups = [-math.ceil(c / n_names) for c in range(len(self.gaussians.class_ids))]
        return [0.9 + 0.1 * (group + 1) / len(self.bank) for group in groups]

    def precompute(self, names: Names) -> tuple[Tensor | slice, Tensor]:
        rows = self.gaussians.get_rows(names)
        return self.head.precompute(names), ~self.gaussians.counts[rows].any(1)

    def prepare(self, names: Names, fixed: tuple[Tensor | slice, Tensor]) -> Prepared:
        head_state = self.head.prepare(names, fixed[0])
        if int(self.n_learned) < len(self.bank):  # in a lesson
            return head_state, None, None
        require_images(~fixed[1], names)
        return head_state, fixed[1], self.bank.fuse()

    def forward(self, inputs: Images, prepared: Prepared) -> Output:
        head_state, has_no_images, universal = prepared
        if universal is None:
            image = self.tower(inputs, self.bank.get_prompt(-1))  # (B, E)
            return Output(self.head(image, head_state), image_features=image)
        prompts = [*(self.bank.get_prompt(k) for k in range(len(self.bank))), universal]
        images = torch.stack([self.tower(inputs, prompt) for prompt in prompts])  # (T + 1, B, E)
        log_p = self.head(images, head_state).masked_fill(has_no_images, -torch.inf).log_softmax(-1)
        entropy = -(log_p.exp() * log_p.nan_to_num(neginf=0)).sum(-1)[:-1]  # (T, B)
        chosen, rows = entropy.argmin(0), torch.arange(entropy.shape[1], device=entropy.device)
        logits = torch.logaddexp(log_p[chosen, rows], log_p[-1]) - math.log(2)
        return build_output(logits, images[chosen, rows], chosen, len(self.bank))
