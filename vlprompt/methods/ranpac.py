"""RanPAC: McDonnell et al., NeurIPS 2023, arXiv:2307.02251.

The paper is "RanPAC: Random Projections and Pre-trained Models for Continual Learning". A ridge head on rectified
random projections of the frozen feature, solved exactly from two sums that each lesson adds to, so that the order of a
stream does not matter. Nothing is trained by gradient. Sites: none; the frozen features are computed once. Use:
streams.

Differs from the authors' code in: the tower is never adapted to the first lesson ("first-session adaptation", which is
most of their gain on sets far from ImageNet); sums and solutions are float64; the penalty is searched by one
eigendecomposition of the smaller side instead of a solution for each value, on a fifth of the lesson's images drawn at
random. As there, features are not normalised and the penalty is that of the last lesson. From the paper in: nothing.

Its state is large: the sums take 8 projection_dim^2 bytes, 800 MB at 10,000 (projection_dim=2000: 32 MB).

Expected (ViT-B/16 of IN-1k, final accuracy, with first-session adaptation): Split CIFAR-100 92.2, ImageNet-R 77.9,
CORe50 96.7, CUB 90.3 (the authors' tables).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import AnyTower
from vlprompt.layers.heads import find_class_indices

PENALTY_GRID = tuple(10.0**e for e in range(-8, 9))
BATCH_SIZE = 256  # images at once


class RanPAC(Method):
    """A ridge head on random projections.

    Args:
        tower: frozen image tower or language model.
        projection_dim: width of the projection (M).
        penalty: of the ridge (lambda); None: searched.
    """

    needs_single_labels = True
    projection: Tensor
    gram: Tensor
    cross: Tensor
    ridge_weights: Tensor

    def __init__(self, tower: AnyTower, projection_dim: int = 10000, penalty: float | None = None):
        super().__init__()
        self.tower, self.projection_dim, self.penalty = tower, projection_dim, penalty
        self.class_ids: Names = ()

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(projection_dim=1)
        if self.penalty is not None and self.penalty <= 0:
            raise ValueError(
                f"method.penalty: expected a value above 0, or null to search for it, got {self.penalty}. Set one of "
                "these."
            )
        train, options = lesson.train, {"dtype": torch.float64, "device": self.tower.device}
        if not lesson.index:
            drawn = torch.randn(self.tower.feature_dim, self.projection_dim, generator=generator).double()
            self.register_buffer("projection", drawn.to(self.tower.device))  # (E, M)
            self.register_buffer("gram", torch.zeros(self.projection_dim, self.projection_dim, **options))  # G
            self.class_ids = ()
        added_ids = [i for i in class_ids(train.names) if i not in self.class_ids]
        self.class_ids = (*self.class_ids, *added_ids)
        earlier = [self.cross] if lesson.index else []
        zeros = torch.zeros(self.projection_dim, len(added_ids), **options)
        self.register_buffer("cross", torch.cat([*earlier, zeros], 1))  # the paper's C: (M, classes)
        self.register_buffer("ridge_weights", torch.zeros_like(self.cross))
        if len(train):
            self.add_lesson(train, generator)

    @torch.no_grad()
    def add_lesson(self, train: Split, generator: torch.Generator) -> None:
        """Add a lesson's images to the sums, and solve the head."""
        rows = find_class_indices(self.class_ids, train.names, "a ridge head")
        labels = rows[torch.tensor(train.labels)].to(self.projection.device)
        x = torch.cat([self.tower(batch.inputs) for batch in train.batches(BATCH_SIZE)])  # (n, E)
        y = F.one_hot(labels, len(self.class_ids)).double()
        gram, cross = self.compute_sums(x, y)
        self.gram += gram
        self.cross += cross
        if (penalty := self.penalty) is None:
            errors = self.compute_errors(x, y, generator) if len(x) > 1 else {1.0: 0.0}
            penalty = min(errors, key=lambda value: errors[value])
        ridge = self.gram + penalty * torch.eye(self.projection_dim, dtype=y.dtype, device=y.device)
        self.ridge_weights.copy_(torch.linalg.solve(ridge, self.cross))

    def compute_sums(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Compute h^T h and h^T y of features (n, E), a few rows at a time."""
        gram, cross = torch.zeros_like(self.gram), torch.zeros_like(self.cross)
        for x_rows, y_rows in zip(x.split(BATCH_SIZE), y.split(BATCH_SIZE), strict=True):
            h = self.project(x_rows)
            gram += h.T @ h
            cross += h.T @ y_rows
        return gram, cross

    def compute_errors(self, x: Tensor, y: Tensor, generator: torch.Generator) -> dict[float, float]:
        """Compute the squared error of each penalty on a fifth of the images (n, E), solved on the others."""
        order = torch.randperm(len(x), generator=generator).to(x.device)
        n_fit = max(1, int(0.8 * len(x)))
        fit, val = order[:n_fit], order[n_fit:]
        if n_fit < self.projection_dim:  # (h^T h + l)^-1 h^T y = h^T (h h^T + l)^-1 y, the smaller side
            h = self.project(x[fit])
            values, vectors = torch.linalg.eigh(h @ h.T)
            basis, solved = h.T @ vectors, vectors.T @ y[fit]
        else:
            gram, cross = self.compute_sums(x[fit], y[fit])
            values, basis = torch.linalg.eigh(gram)
            solved = basis.T @ cross
        errors = dict.fromkeys(PENALTY_GRID, 0.0)
        for x_rows, y_rows in zip(x[val].split(BATCH_SIZE), y[val].split(BATCH_SIZE), strict=True):
            projected = self.project(x_rows) @ basis
            for penalty in PENALTY_GRID:
                predicted = projected @ (solved / (values.clamp(min=0) + penalty)[:, None])
                errors[penalty] += float((predicted - y_rows).square().sum())
        return errors

    def project(self, x: Tensor) -> Tensor:
        """Project features (n, E) -> (n, M)."""
        return (x.double() @ self.projection).relu()

    def precompute(self, names: Names) -> Tensor:
        columns = find_class_indices(self.class_ids, names, "a ridge head")
        return self.ridge_weights[:, columns.to(self.ridge_weights.device)]

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.tower(inputs)  # (B, E), un-normalised
        return Output((self.project(image) @ prepared).float(), image_features=image)
