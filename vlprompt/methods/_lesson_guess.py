"""Parts of HiDe-Prompt (arXiv:2310.07234): the guess of an image's lesson, and classes that are replayed."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from vlprompt.core.head import Head
from vlprompt.core.images import Images
from vlprompt.core.method import ParamGroup
from vlprompt.core.stage import Lesson
from vlprompt.layers.class_gaussians import ClassGaussians
from vlprompt.layers.heads import LinearHead
from vlprompt.layers.initial_values import make_linear
from vlprompt.methods._alignment import AlignmentSettings, align, compute_features

TEMPERATURE = 0.8  # of the contrast


class LessonGuesser(nn.Module):
    """head(norm(f + down(gelu(up(f))))) of frozen features f (B, E), and the lesson in which each class came last.

    Args:
        width: E.
        factor: hidden units over the width.
        generator: of the initial values.
        device: of the weights.
    """

    class_lessons: Tensor  # (C,)

    def __init__(self, width: int, factor: int, generator: Generator, device: torch.device):
        super().__init__()
        self.up = make_linear(width, factor * width, generator, device)
        self.down = make_linear(factor * width, width, generator, device)
        self.norm, self.head = nn.LayerNorm(width, device=device), LinearHead()

    def begin_lesson(self, lesson: Lesson, generator: Generator) -> None:
        """Add the classes of a lesson; those with images are now of this lesson."""
        device = self.up.weight.device
        self.head.begin_lesson(lesson, generator, self.up.in_features, device)
        class_lessons = torch.zeros(len(self.head.class_ids), dtype=torch.long, device=device)
        if lesson.index:
            class_lessons[: len(self.class_lessons)] = self.class_lessons
        rows = self.head.class_indices(lesson.train.names)[sorted(set(lesson.train.labels))]
        self.register_buffer("class_lessons", class_lessons.index_fill(0, rows, lesson.index))

    def forward(self, features: Tensor, columns: Tensor | slice) -> Tensor:
        """Compute the logits (B, C) of the classes of some columns."""
        return self.head(self.norm(features + self.down(F.gelu(self.up(features)))), columns)

    def guess_lesson(self, features: Tensor, columns: Tensor) -> Tensor:
        """Return the lesson (B,) of the class that has the highest logit."""
        return self.class_lessons[columns[self(features, columns).argmax(1)]]


class ReplayedClasses(ClassGaussians):
    """Gaussians of the features of the classes so far, on whose draws a head is aligned after each lesson."""

    def find_present(self) -> list[int]:
        """Return the rows of the classes that had images."""
        return (self.counts.sum(1) > 0).nonzero()[:, 0].tolist()

    def compute_contrast(self, features: Tensor) -> Tensor:
        """Compute how far means of earlier classes and features (B, D) are from being like themselves alone."""
        rows = torch.cat([self.means[self.counts > 0], features.float()])  # (M, D)
        return F.cross_entropy(rows @ rows.T / TEMPERATURE, torch.arange(len(rows), device=rows.device))

    def align(
        self,
        encode: Callable[[Images], Tensor],
        lesson: Lesson,
        head: Head,
        module: nn.Module,
        settings: AlignmentSettings,
        seed: int,
    ) -> None:
        """Add the features of a lesson, and train on draws of all classes, as many steps as there were classes before.

        Args:
            encode: images -> features (B, D).
            lesson: whose images are added.
            head: whose prepared state the module takes beside the features.
            module: features, prepared state of the head -> logits; its parameters are trained.
            settings: of the training; as many features of each class as there are in a batch.
            seed: of k-means and the draws.
        """
        n_earlier, parameters = len(self.find_present()), [*module.parameters()]
        self.add(*compute_features(encode, lesson.train), lesson.train.names, seed)
        rows = self.find_present()
        names = tuple(self.class_ids[row] for row in rows)
        if not (n_earlier and parameters and settings.epochs):
            return
        fixed = head.precompute(names)

        def compute_loss(features: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(module(features, head.prepare(names, fixed)), labels)

        draws = self.draw_epochs(rows, settings.batch_size, seed)
        align(parameters, compute_loss, draws, settings._replace(max_steps=n_earlier))

    def draw_epochs(self, rows: Sequence[int], n: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield n drawn features of each class, or centroid, and their classes, for one epoch after the other."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.draw_classes(rows, n, generator)


def set_lr_factors(groups: Sequence[ParamGroup], factors: Mapping[nn.Module, float]) -> list[ParamGroup]:
    """Divide parameter groups so that the parameters of some modules have learning rates of their own."""
    factor_of = {id(p): factor for module, factor in factors.items() for p in module.parameters()}
    divided = list[ParamGroup]()
    for group in groups:
        for factor in dict.fromkeys([1.0, *factors.values()]):
            if params := [p for p in group["params"] if factor_of.get(id(p), 1.0) == factor]:
                divided.append({**group, "params": params, "lr_factor": factor})
    return divided
