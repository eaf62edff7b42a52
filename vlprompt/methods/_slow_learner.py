"""What SLCA and SLCA++ share: Gaussians of classes, and the alignment of the heads of all lessons on them."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.class_gaussians import ClassGaussians
from vlprompt.methods._adaptation import require_positive
from vlprompt.methods._alignment import AlignmentSettings, align, compute_features
from vlprompt.methods._lesson_checks import require_no_rehearsal
from vlprompt.methods._lesson_rows import LessonRows
from vlprompt.methods._prototypes import require_images
from vlprompt.runtime.seeding import make_generator


class SlowLearner(LessonRows):
    """A slowly trained tower with a linear head of each lesson; draws of all classes align the heads that answer.

    Args:
        tower: image tower.
        draws_per_class: features that are drawn of each class in an epoch of the alignment.
        alignment_epochs: epochs of the alignment.
        alignment_lr: its learning rate.
        alignment_weight_decay: its weight decay.
        temperature: of the normalised logits in the alignment's loss.
    """

    def __init__(
        self,
        tower: VisionTower,
        draws_per_class: int,
        alignment_epochs: int,
        alignment_lr: float,
        alignment_weight_decay: float,
        temperature: float,
    ) -> None:
        super().__init__(tower)
        self.draws_per_class, self.alignment_epochs = draws_per_class, alignment_epochs
        self.alignment_lr, self.alignment_weight_decay = alignment_lr, alignment_weight_decay
        self.temperature = temperature
        self.gaussians = ClassGaussians("covariance")
        self.seed = 0

    def compute_mean_factor(self, lesson: int) -> float:
        """Return the factor of the means of a lesson's classes in the alignment."""
        return 1.0

    def scale_draws(self, features: Tensor, age: Tensor, noise: Tensor) -> Tensor:
        """Scale drawn features (N, E) of classes that came `age` (N,) lessons ago; noise (N,) is uniform."""
        return features

    def validate(self, lesson: Lesson) -> None:
        """Check that the settings, the tower and the lesson fit; ValueError if not."""
        self.require_at_least(draws_per_class=1, alignment_epochs=0, alignment_weight_decay=0)
        for name in ("alignment_lr", "temperature"):
            require_positive(self, name)
        require_no_rehearsal(lesson, type(self).__name__, "features of earlier classes are drawn")
        require_images(lesson.train, self.class_ids if lesson.index else ())
        self.tower.require_blocks()

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.validate(lesson)
        super().begin_lesson(lesson, generator)
        self.gaussians.begin_lesson(lesson.train.names, not lesson.index, self.tower.feature_dim, self.tower.device)
        self.seed = int(torch.randint(2**31, (), generator=generator))

    @torch.no_grad()
    def end_lesson(self, lesson: Lesson) -> None:
        """Add the Gaussians of the lesson's classes, and align the rows of all lessons."""
        self.eval()
        self.gaussians.add(*compute_features(self.encode, lesson.train), lesson.train.names)
        super().end_lesson(lesson)
        if lesson.index:
            self.align(self.draw_epochs())

    def draw_epochs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield drawn features (N, E) and the rows (N,) of their classes, for each epoch."""
        lessons = self.lessons.tolist()
        factors = [self.compute_mean_factor(lesson) for lesson in lessons]
        for epoch in range(self.alignment_epochs):
            generator = make_generator(self.seed, "alignment", epoch)
            x, labels = self.gaussians.draw_classes(range(len(lessons)), self.draws_per_class, generator, factors)
            noise = torch.rand(len(x), generator=generator).to(x.device)
            yield self.scale_draws(x, self.lesson_index - self.lessons[labels], noise), labels

    def align(self, draws: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Train the aligned rows on drawn features."""
        weight, bias = nn.Parameter(self.aligned_weight.clone()), nn.Parameter(self.aligned_bias.clone())
        groups = [(self.lessons == lesson).nonzero()[:, 0] for lesson in self.lessons.unique().tolist()]

        def compute_loss(x: Tensor, y: Tensor) -> Tensor:
            logits = F.linear(x, weight, bias)
            norms = [logits[:, rows].norm(dim=1, keepdim=True) + 1e-7 for rows in groups]
            return F.cross_entropy(logits / torch.cat(norms, 1).mean(1, keepdim=True) / self.temperature, y)

        settings = AlignmentSettings(
            self.alignment_epochs,
            self.alignment_lr,
            self.draws_per_class,
            weight_decay=self.alignment_weight_decay,
        )
        align((weight, bias), compute_loss, draws, settings)
        self.aligned_weight.copy_(weight.detach())
        self.aligned_bias.copy_(bias.detach())
