"""A linear head of each lesson on a trained tower, of which a copy answers after the lesson."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.class_names import Names, extend_ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.heads import LinearHead, find_class_indices

Rows = tuple[Tensor, Tensor]  # weights (C, E) and biases (C,)


class LessonRows(Method):
    """A trained tower with a linear head of each lesson.

    A lesson trains the rows of its own classes: those of earlier lessons stay. After it, a copy of all rows answers,
    which may be aligned; the next lesson goes on from the rows as they were. A class that comes again is trained on
    from its row, and belongs to the later lesson.

    Args:
        tower: image tower.
    """

    needs_single_labels = True
    tower: VisionTower
    stored_weight: Tensor
    stored_bias: Tensor
    aligned_weight: Tensor
    aligned_bias: Tensor
    lessons: Tensor  # (C,), of each class
    has_ended: Tensor

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower
        self.class_ids: Names = ()
        self.lesson_index = 0

    def build(self) -> None:
        """Create what is trained of the tower, at the first lesson."""
        raise NotImplementedError

    def encode(self, inputs: Images) -> Tensor:
        """Compute the features (B, E) of the trained tower."""
        raise NotImplementedError

    def scale_answer(self, age: Tensor) -> Tensor | float:
        """Return the factor (C, 1) of the features for classes that came `age` (C,) lessons ago."""
        return 1.0

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
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
        """Store the rows that the lesson trained, and let a copy of all rows answer."""
        for name in ("weight", "bias"):
            getattr(self, f"stored_{name}")[self.lesson_rows] = getattr(self, name)
            getattr(self, f"aligned_{name}").copy_(getattr(self, f"stored_{name}"))
        self.has_ended.fill_(True)
