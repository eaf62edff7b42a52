"""What SLCA and SLCA++ share: a head of each lesson, Gaussians of classes, and the alignment of all heads on them."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.class_names import Names, extend_ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.class_gaussians import ClassGaussians
from vlprompt.layers.heads import LinearHead, find_class_indices
from vlprompt.methods._alignment import AlignmentSettings, align, compute_features
from vlprompt.methods._prototypes import require_images
from vlprompt.runtime.seeding import make_generator

Rows = tuple[Tensor, Tensor]  # weights (C, E) and biases (C,)


class SlowLearner(Method):
    """A slowly trained tower with a linear head of each lesson; draws of all classes align the heads that answer.

    A lesson trains the rows of its own classes: those of earlier lessons stay. After it, a copy of all rows is aligned,
    and answers; the next lesson goes on from the rows as they were. A class that comes again is trained on from its
    row, and belongs to the later lesson.

    Args:
        tower: image tower.
        draws_per_class: features that are drawn of each class in an epoch of the alignment.
        alignment_epochs: epochs of the alignment.
        alignment_lr: its learning rate.
        alignment_weight_decay: its weight decay.
        temperature: of the normalised logits in the alignment's loss.
    """

    needs_single_labels = True
    tower: VisionTower
    stored_weight: Tensor
    stored_bias: Tensor
    aligned_weight: Tensor
    aligned_bias: Tensor
    lessons: Tensor  # (C,), of each class
    has_ended: Tensor

    def __init__(
        self,
        tower: VisionTower,
        draws_per_class: int,
        alignment_epochs: int,
        alignment_lr: float,
        alignment_weight_decay: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.tower, self.draws_per_class, self.alignment_epochs = tower, draws_per_class, alignment_epochs
        self.alignment_lr, self.alignment_weight_decay = alignment_lr, alignment_weight_decay
        self.temperature = temperature
        self.gaussians = ClassGaussians("covariance")
        self.class_ids: Names = ()
        self.lesson_index, self.seed = 0, 0

    def build(self) -> None:
        """Create what is trained of the tower, at the first lesson."""
        raise NotImplementedError

    def encode(self, inputs: Images) -> Tensor:
        """Compute the features (B, E) of the trained tower."""
        raise NotImplementedError

    def compute_mean_factor(self, lesson: int) -> float:
        """Return the factor of the means of a lesson's classes in the alignment."""
        return 1.0

    def scale_draws(self, features: Tensor, age: Tensor, noise: Tensor) -> Tensor:
        """Scale drawn features (N, E) of classes that came `age` (N,) lessons ago; noise (N,) is uniform."""
        return features

    def scale_answer(self, age: Tensor) -> Tensor | float:
        """Return the factor (C, 1) of the features for classes that came `age` (C,) lessons ago."""
        return 1.0

    def validate(self, lesson: Lesson) -> None:
        """Check that the settings, the tower and the lesson fit; ValueError if not."""
        self.require_at_least(draws_per_class=1, alignment_epochs=0, alignment_weight_decay=0)
        for name in ("alignment_lr", "temperature"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"method.{name}: expected a value above 0, got {value}. Set a higher value.")
        if lesson.memory is not None and len(lesson.memory):
            raise ValueError(
                f"{type(self).__name__}: expected no rehearsal, because features of earlier classes are drawn, got a "
                "rehearsal buffer. Set task.buffer=0."
            )
        require_images(lesson.train, self.class_ids if lesson.index else ())
        self.tower.require_blocks()

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.validate(lesson)
        names, device, width = lesson.train.names, self.tower.device, self.tower.feature_dim
        if not lesson.index:
            self.build()
        known = self.class_ids if lesson.index else ()
        self.class_ids, self.lesson_index = extend_ids(known, names), lesson.index
        n_added = len(self.class_ids) - len(known)
        added = {k: v.to(device) for k, v in LinearHead().init_parameters((n_added, width), generator).items()}
        for name, value in added.items():
            earlier = [getattr(self, f"stored_{name}")] if known else []
            self.register_buffer(f"stored_{name}", torch.cat([*earlier, value]))
            self.register_buffer(f"aligned_{name}", getattr(self, f"stored_{name}").clone())
        earlier = [self.lessons] if known else []
        self.register_buffer("lessons", torch.cat([*earlier, torch.zeros(n_added, dtype=torch.long, device=device)]))
        self.lesson_rows = self._find_rows(names)
        self.lessons[self.lesson_rows] = lesson.index
        self.weight = nn.Parameter(self.stored_weight[self.lesson_rows])
        self.bias = nn.Parameter(self.stored_bias[self.lesson_rows])
        self.register_buffer("has_ended", torch.zeros((), dtype=torch.bool, device=device))
        self.gaussians.begin_lesson(names, not lesson.index, width, device)
        self.seed = int(torch.randint(2**31, (), generator=generator))

    def _find_rows(self, names: Names) -> Tensor:
        return find_class_indices(self.class_ids, names, "a linear head").to(self.tower.device)

    def precompute(self, names: Names) -> Tensor:
        return self._find_rows(names)

    def prepare(self, names: Names, fixed: Tensor) -> Rows:
        """Return the aligned rows of the classes; before a lesson ends, the rows that it trains among the others."""
        if self.has_ended:
            factor = self.scale_answer(self.lesson_index - self.lessons)
            return (factor * self.aligned_weight)[fixed], self.aligned_bias[fixed]
        weight = self.stored_weight.index_copy(0, self.lesson_rows, self.weight)
        return weight[fixed], self.stored_bias.index_copy(0, self.lesson_rows, self.bias)[fixed]

    def forward(self, inputs: Images, prepared: Rows) -> Output:
        features = self.encode(inputs)
        return Output(F.linear(features, *prepared), image_features=features)

    @torch.no_grad()
    def end_lesson(self, lesson: Lesson) -> None:
        """Add the Gaussians of the lesson's classes, and align the rows of all lessons."""
        self.eval()
        self.gaussians.add(*compute_features(self.encode, lesson.train), lesson.train.names)
        for name in ("weight", "bias"):
            getattr(self, f"stored_{name}")[self.lesson_rows] = getattr(self, name)
            getattr(self, f"aligned_{name}").copy_(getattr(self, f"stored_{name}"))
        if lesson.index:
            self.align(self.draw_epochs())
        self.has_ended.fill_(True)

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
