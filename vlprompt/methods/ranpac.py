"""RanPAC: McDonnell et al., NeurIPS 2023, arXiv:2307.02251.

The paper is "RanPAC: Random Projections and Pre-trained Models for Continual Learning". A ridge head on rectified
random projections of the frozen feature, solved exactly from two sums that each lesson adds to, so that the order of a
stream does not matter. Nothing is trained by gradient. Sites: none; the frozen features are computed once.

Differs from the authors' code in: the tower is never adapted to the first lesson ("first-session adaptation", which is
most of their gain on sets far from ImageNet); sums and solutions are float64; the penalty is searched by one
eigendecomposition of the smaller side instead of a solution for each value, on a fifth of the lesson's images drawn at
random. As there, features are not normalised and the penalty is that of the last lesson. From the paper in: nothing.

Its state is large: the sums take 8 width^2 bytes, 800 MB at 10,000 (width=2000: 32 MB).

Expected (ViT-B/16 of IN-1k, final accuracy, with first-session adaptation): Split CIFAR-100 92.2, ImageNet-R 77.9,
CORe50 96.7, CUB 90.3 (the authors' tables).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import AnyTower
from vlprompt.layers.heads import columns

GRID = tuple(10.0**e for e in range(-8, 9))
ROWS = 256  # images at once


class RanPAC(Method):
    """A ridge head on random projections. width: of the projection (M); penalty: lambda, None to search for it."""

    map: Tensor
    gram: Tensor
    cross: Tensor
    head: Tensor

    def __init__(self, tower: AnyTower, width: int = 10000, penalty: float | None = None):
        super().__init__()
        self.tower, self.width, self.penalty = tower, width, penalty
        self.ids: Names = ()

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(width=1)
        if self.penalty is not None and self.penalty <= 0:
            raise ValueError(f"method.penalty must be above 0 (null searches for it), not {self.penalty}")
        train, device = lesson.train, self.tower.device
        zeros = lambda *shape: torch.zeros(shape, dtype=torch.float64, device=device)  # noqa: E731
        if not lesson.index:
            drawn = torch.randn(self.tower.width, self.width, generator=generator).double()
            self.register_buffer("map", drawn.to(device))  # (E, M)
            self.register_buffer("gram", zeros(self.width, self.width))  # G
            self.ids = ()
        new = [i for i in ids(train.names) if i not in self.ids]
        old = [self.cross] if lesson.index else []
        self.ids = (*self.ids, *new)
        self.register_buffer("cross", torch.cat([*old, zeros(self.width, len(new))], 1))  # C: (M, classes)
        self.register_buffer("head", torch.zeros_like(self.cross))
        if len(train):
            self.add(train, generator)

    @torch.no_grad()
    def add(self, train: Split, generator: torch.Generator) -> None:
        """One more lesson's images in the sums, and the head that they give."""
        place = columns(self.ids, train.names, "a ridge head")[torch.tensor(train.labels)].to(self.map.device)
        x = torch.cat([self.tower(batch.inputs) for batch in train.batches(ROWS)])  # (n, E)
        y = F.one_hot(place, len(self.ids)).double()
        gram, cross = self.sums(x, y)
        self.gram += gram
        self.cross += cross
        if (penalty := self.penalty) is None:
            errors = self.errors(x, y, generator) if len(x) > 1 else {1.0: 0.0}
            penalty = min(errors, key=lambda value: errors[value])
        ridge = self.gram + penalty * torch.eye(self.width, dtype=y.dtype, device=y.device)
        self.head.copy_(torch.linalg.solve(ridge, self.cross))

    def sums(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """h^T h and h^T y of features (n, E), a few rows at a time."""
        gram, cross = torch.zeros_like(self.gram), torch.zeros_like(self.cross)
        for part, right in zip(x.split(ROWS), y.split(ROWS), strict=True):
            h = self.projected(part)
            gram += h.T @ h
            cross += h.T @ right
        return gram, cross

    def errors(self, x: Tensor, y: Tensor, generator: torch.Generator) -> dict[float, float]:
        """The squared error of each penalty on a fifth of the images (n, E), solved on the others."""
        order = torch.randperm(len(x), generator=generator).to(x.device)
        kept, held = order.split([(most := max(1, int(0.8 * len(x)))), len(x) - most])
        if most < self.width:  # (h^T h + l)^-1 h^T y = h^T (h h^T + l)^-1 y, the smaller side
            h = self.projected(x[kept])
            values, vectors = torch.linalg.eigh(h @ h.T)
            basis, solved = h.T @ vectors, vectors.T @ y[kept]
        else:
            gram, cross = self.sums(x[kept], y[kept])
            values, basis = torch.linalg.eigh(gram)
            solved = basis.T @ cross
        found = dict.fromkeys(GRID, 0.0)
        for part, right in zip(x[held].split(ROWS), y[held].split(ROWS), strict=True):
            left = self.projected(part) @ basis
            for penalty in GRID:
                made = left @ (solved / (values.clamp(min=0) + penalty)[:, None])
                found[penalty] += float((made - right).square().sum())
        return found

    def projected(self, x: Tensor) -> Tensor:
        """Features (n, E) -> (n, M)."""
        return (x.double() @ self.map).relu()

    def fixed(self, names: Names) -> Tensor:
        return self.head[:, columns(self.ids, names, "a ridge head").to(self.head.device)]

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.tower(inputs)  # (B, E), un-normalised
        return Output((self.projected(image) @ prepared).float(), image=image)
