"""CODA-Prompt: Smith et al., CVPR 2023, arXiv:2211.13218.

The paper is "CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual Learning". The
prompt of an image is a weighted sum of components; a weight is the cosine between a key and the image's frozen
feature, looked at through a learned attention vector. Each lesson brings components of its own and leaves the earlier
ones as they are. Sites: prefixes of the image tower at the first layers.

The weights of all components are two matrix products, (q (A * K)^T) / sqrt(q^2 (A^2)^T) with K of unit length, instead
of B x M x E products; the same numbers.

Differs from the authors' code in: ortho is 0.1 as in the paper (0 in their scripts; an author advises 1e-6 in issue
12); new components are made orthogonal to the span of all earlier ones, trained ones too (theirs to each in turn, which
is that only where these are orthogonal to each other); components that don't divide evenly go to the first lessons
(there they are left out); past components have no gradient at all, so that no weight decay changes them. From the
paper in: nothing.

Expected (class-incremental, ViT-B/16 of IN-1k, final accuracy): Split CIFAR-100 of 10 86.25; Split ImageNet-R of 5, 10,
20 76.51, 75.45, 72.37; DomainNet of 5 73.24 (the paper).
"""

from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.core.head import Reader
from vlprompt.core.images import Images
from vlprompt.core.method import OnTower, Output
from vlprompt.core.prompt import KV, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, VisionTower
from vlprompt.layers.attention import heads


class CODAPrompt(OnTower):
    """Components weighted by attention.

    size: components of all lessons together (M), shared out; length: of a prefix, half keys and half values (0: none);
    layers: the first so many have prefixes, cut to the tower's; ortho: weight of the penalty on components, keys and
    attention vectors that are not orthonormal.
    """

    def __init__(self, tower: VisionTower, reader: Reader, size: int = 100, length: int = 8, layers: int = 5,
                 ortho: float = 0.1):  # fmt: skip
        super().__init__()
        self.tower, self.reader, self.size, self.length = tower, reader, size, length
        self.layers, self.ortho = layers, ortho

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(size=1, length=0, ortho=0)
        if self.length % 2:
            raise ValueError(f"method.length={self.length} must be even: half of a prefix is keys, half is values")
        if self.length:
            self.tower.sites("patch")  # a tower without blocks says so
            self.check(lesson)
        super().begin(lesson, generator)
        if self.length:
            self.grow(lesson, generator)

    def check(self, lesson: Lesson) -> None:
        """ValueError for components that can't be shared out, or can't be orthogonal."""
        most = min(self.tower.width, self.length * self.tower.dim)
        if lesson.total is None:
            raise ValueError(
                "CODA-Prompt shares its components out over the lessons, but this stream does not say how many there "
                "are; take l2p, or dualprompt with method.size"
            )
        if self.size < lesson.total:
            raise ValueError(
                f"{self.size} components are too few for {lesson.total} lessons: set a greater method.size"
            )
        if self.size > most:
            raise ValueError(
                f"{self.size} components can't be orthogonal in {most} dimensions: set method.size to at most {most}"
            )

    def build(self, generator: torch.Generator) -> None:
        self.depth = self.within("layers", self.tower.depth)
        self.pool, self.keys, self.focus = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()

    def grow(self, lesson: Lesson, generator: torch.Generator) -> None:
        """This lesson's components (layers, m, P, D), keys and attention vectors (layers, m, E)."""
        assert lesson.total is not None, "check has looked"
        more = self.size // lesson.total + (lesson.index < self.size % lesson.total)
        shapes = ((self.length, self.tower.dim), (self.tower.width,), (self.tower.width,))
        for held, shape in zip((self.pool, self.keys, self.focus), shapes, strict=True):
            past = [p.detach().flatten(2).cpu() for p in held]
            drawn = torch.randn(self.depth, more, *shape, generator=generator).flatten(2)
            new = orthonormal(torch.cat([*past, drawn], 1))[:, -more:].unflatten(-1, shape)
            held.requires_grad_(False)
            held.append(nn.Parameter(new.to(self.tower.device)))

    def weights(self, query: Tensor) -> Tensor:
        """cos(q * A, K) of images (B, E) -> (layers, B, M)."""
        keys, focus = torch.cat(list(self.keys), 1), torch.cat(list(self.focus), 1)
        along = query @ (focus * Clip.unit(keys)).mT
        return along / (query.square() @ focus.square().mT).clamp(min=1e-24).sqrt()

    def penalty(self) -> Tensor:
        """How far components, keys and attention vectors are from orthonormal: mean squares, summed over layers."""
        total = torch.zeros((), device=self.tower.device)
        for held in (self.pool, self.keys, self.focus):
            x = torch.cat(list(held), 1).flatten(2)  # (layers, M, E)
            total = total + (x @ x.mT - torch.eye(x.shape[1], device=x.device)).square().mean((1, 2)).sum()
        return self.ortho * total

    def forward(self, inputs: Images, prepared: tuple[VisionTower, Any]) -> Output:
        query = self.tower(inputs)  # (B, E), bare: from the feature store
        if not self.length:
            return Output(self.reader(query, prepared[1]), image=query)
        weights = self.weights(query)
        made = weights @ torch.cat(list(self.pool), 1).flatten(2)  # (layers, B, P * D)
        keys, values = made.unflatten(-1, (2, self.length // 2, -1)).unbind(2)  # (layers, B, P / 2, D)
        h = self.tower.heads
        prefix: dict[int | str, KV] = {
            i: (heads(k, h), heads(v, h)) for i, (k, v) in enumerate(zip(keys, values, strict=True))
        }
        image = self.tower(inputs, Prompt(prefix=prefix))
        share = weights.detach().abs().mean(0)  # (B, M)
        penalty = self.penalty() if self.ortho and self.training else 0.0
        return Output(
            self.reader(image, prepared[1]), penalty, image, used=share / share.sum(-1, keepdim=True).clamp(min=1e-12)
        )


def orthonormal(rows: Tensor) -> Tensor:
    """Gram-Schmidt: each row (..., m, E) less its part in the span of those before it, of unit length."""
    q, r = torch.linalg.qr(rows.double().mT)
    return (q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]).mT.to(rows.dtype)
