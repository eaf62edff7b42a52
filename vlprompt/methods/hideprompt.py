"""HiDe-Prompt: Wang et al., NeurIPS 2023, arXiv:2310.07234.

The paper is "Hierarchical Decomposition of Prompt-Based Continual Learning: Rethinking Obscured Sub-optimality". A
small network on the frozen feature guesses the class, and its lesson the prefixes of an image; each lesson trains its
own, mixed with the mean of earlier ones, with a contrast to the means of earlier classes. After a lesson the network
and the head are aligned on features drawn for all classes. Sites: prefixes of the image tower at the first layers,
another set per image. Use: streams.

Differs from the authors' code in: the guesser trains in the same steps as the prompts, at its own rate (there in a run
before, of fewer epochs, joined by files); keys and values are not mixed up by a reshape (hideprompt-asis), so that an
answer does not depend on its batch; classes that did not come have no logits; a class that comes again has the prompts
of its latest lesson. Means of earlier classes stand in the contrast once a class, or once a centroid, as there.

Its state grows by 8 layers * prompt_length * D bytes a lesson (154 kB on a ViT-B/16), and for each class by
16 n_centroids D (123 kB), or by 8 D^2 (4.7 MB) with statistics=covariance.

Expected (class-incremental, ViT-B/16 of IN-21k, final accuracy): CIFAR-100 92.61, ImageNet-R 75.06 (the paper). In
SD-LoRA's table, on IN-1k, final and average: ImageNet-R of 5, 10, 20 74.77/78.15, 74.65/78.46, 73.59/77.93.
"""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.head import Fixed, Head, Prepared
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Output, ParamGroup, TowerMethod
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.class_gaussians import Spread
from vlprompt.layers.initial_values import draw_uniform
from vlprompt.methods._alignment import AlignmentSettings
from vlprompt.methods._lesson_checks import require_task_boundaries
from vlprompt.methods._lesson_guess import LessonGuesser, ReplayedClasses, set_lr_factors


class HiDePrompt(TowerMethod[VisionTower]):
    """Prefixes of each lesson, chosen by a guess of the class, and heads aligned on drawn features.

    Args:
        tower: frozen image tower.
        head: maps features to class logits.
        prompt_length: of the keys and again of the values.
        layers: where they are inserted, clipped to the tower's layers.
        mixing: share of the mean of earlier prompts in those of a lesson.
        contrast_weight: of the contrast between images, and with the means of earlier classes.
        head_lr_factor, guesser_lr_factor: learning rates of head and guesser over that of the prompts.
        guesser_factor: hidden units of the guesser over the width of a feature.
        statistics: what is stored of the features of a class: covariance, variance or centroids.
        n_centroids: of a class.
        alignment_epochs: on drawn features; 0: no alignment.
        alignment_lr, alignment_weight_decay: of the alignment.
        draws: drawn features of a class, or centroid, and step; a fifth for the guesser.
    """

    needs_single_labels = needs_whole_batch = depends_on_class_set = True

    def __init__(self, tower: VisionTower, head: Head, prompt_length: int = 5,
                 layers: tuple[int, ...] = (0, 1, 2, 3, 4), mixing: float = 0.01, contrast_weight: float = 0.1,
                 head_lr_factor: float = 0.1, guesser_lr_factor: float = 1 / 60, guesser_factor: int = 2,
                 statistics: Spread = "centroids", n_centroids: int = 10, alignment_epochs: int = 30,
                 alignment_lr: float = 0.005, alignment_weight_decay: float = 5e-4, draws: int = 120):  # fmt: skip
        super().__init__()
        self.tower, self.head, self.prompt_length, self.layers = tower, head, prompt_length, tuple(layers)
        self.mixing, self.contrast_weight, self.head_lr_factor = mixing, contrast_weight, head_lr_factor
        self.guesser_lr_factor, self.guesser_factor, self.draws = guesser_lr_factor, guesser_factor, draws
        self.statistics: Spread = statistics
        self.n_centroids, self.alignment_epochs = n_centroids, alignment_epochs
        self.alignment_lr, self.alignment_weight_decay = alignment_lr, alignment_weight_decay

    def begin_lesson(self, lesson: Lesson, generator: Generator) -> None:
        self.require_at_least(prompt_length=1, mixing=0, contrast_weight=0, guesser_factor=1, n_centroids=1, draws=5)
        self.require_at_most(mixing=1)
        self.tower.require_blocks()
        require_task_boundaries(lesson, "hideprompt", "for prompts of each lesson")
        super().begin_lesson(lesson, generator)
        self.guesser.begin_lesson(lesson, generator)
        for classes in (self.frozen_classes, self.prompted_classes):
            classes.begin_lesson(lesson.train.names, not lesson.index, self.tower.feature_dim, self.tower.device)
        if lesson.index:
            self.prompts.requires_grad_(False)
            self.prompts.append(nn.Parameter(self.prompts[-1].detach().clone()))
        self.seed = int(torch.randint(2**31, (), generator=generator))

    def build(self, generator: Generator) -> None:
        self.prompt_layers, width = self.clip_layers("layers", self.tower.depth), self.tower.feature_dim
        self.guesser = LessonGuesser(width, self.guesser_factor, generator, self.tower.device)
        self.frozen_classes, self.prompted_classes = (
            ReplayedClasses(self.statistics, n_centroids=self.n_centroids) for _ in range(2)
        )
        shape = len(self.prompt_layers), 2, self.prompt_length, self.tower.dim
        prompts = draw_uniform(shape, -1.0, 1.0, generator).to(self.tower.device)
        self.prompts = nn.ParameterList([nn.Parameter(prompts)])  # of each lesson

    def mix(self) -> Tensor:
        """Mix the prompts of the lesson with the mean of the earlier ones."""
        own, earlier = self.prompts[-1], [*self.prompts][:-1]
        return (1 - self.mixing) * own + self.mixing * torch.stack(earlier).mean(0) if earlier else own

    def insert(self, prompts: Tensor) -> Prompt:
        """Return the prefixes of prompts (R, layers, 2, P, D)."""
        entries = rearrange(prompts, "r l kv p (h d) -> l kv r h p d", h=self.tower.n_heads)
        return Prompt(prefix={i: (k, v) for i, (k, v) in zip(self.prompt_layers, entries, strict=True)})

    def prompt(self, n: int) -> Prompt:
        return self.insert(self.mix()[None])

    def prepare(self, names: Names, fixed: Fixed) -> tuple[Prepared, Tensor]:
        return self.head.prepare(names, fixed), self.guesser.head.class_indices(names)

    def forward(self, inputs: Images, prepared: tuple[Prepared, Tensor]) -> Output:
        head_state, columns = prepared
        if self.training:
            image = self.tower(inputs, self.prompt(len(inputs)))
            return Output(self.head(image, head_state), image_features=image)
        lesson, prompts = self.guesser.guess_lesson(self.tower(inputs), columns), torch.stack([*self.prompts])
        image, usage = self.tower(inputs, self.insert(prompts[lesson])), F.one_hot(lesson, len(prompts)).float()
        out = Output(self.head(image, head_state), image_features=image, prompt_usage=usage)
        return out._replace(predicted_lesson=lesson) if len(prompts) > 1 else out

    def loss_terms(self, batch: Batch, fixed: Fixed) -> tuple[LossTerms, Output]:
        terms, out = super().loss_terms(batch, fixed)
        assert out.image_features is not None, "forward returns them"
        n, columns = len(batch.labels), self.guesser.head.class_indices(batch.names)
        contrast = self.prompted_classes.compute_contrast(out.image_features)
        guesses = self.guesser(self.tower(batch.inputs), columns).float()
        terms["contrast"] = self.contrast_weight * contrast, n
        terms["guesser"] = F.cross_entropy(guesses, batch.labels.to(guesses.device)), n
        return terms, out

    def param_groups(self) -> list[ParamGroup]:
        factors = {self.head: self.head_lr_factor, self.guesser: self.guesser_lr_factor}
        return set_lr_factors(super().param_groups(), factors)

    @torch.no_grad()
    def end_lesson(self, lesson: Lesson) -> None:
        """Store the mixed prompts, and align the guesser and the head on drawn features."""
        self.prompts[-1].copy_(self.mix())
        decay = self.alignment_weight_decay
        settings = AlignmentSettings(self.alignment_epochs, self.alignment_lr, self.draws // 5, weight_decay=decay)
        self.frozen_classes.align(self.tower, lesson, self.guesser.head, self.guesser, settings, self.seed)
        encode = partial(self.tower, prompt=self.insert(self.prompts[-1][None]))
        settings = settings._replace(batch_size=self.draws)
        self.prompted_classes.align(encode, lesson, self.head, self.head, settings, self.seed)
