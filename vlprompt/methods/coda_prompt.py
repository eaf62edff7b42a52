"""CODA-Prompt: Smith et al., CVPR 2023, arXiv:2211.13218.

The paper is "CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual Learning". The
prompt of an image is a weighted sum of components; a weight is the cosine between a key and the image's frozen feature,
weighted by a learned attention vector. Each lesson adds components and leaves the earlier ones as they are. Sites:
prefixes of the image tower at the first layers. Use: streams.

The weights of all components are two matrix products, (q (A * K)^T) / sqrt(q^2 (A^2)^T) with K of unit length, instead
of B x M x E products; the same numbers.

Differs from the authors' code in: orthogonality_weight is 0.1 as in the paper (0 in their scripts; an author advises
1e-6 in issue 12); new components are made orthogonal to the span of all earlier ones, trained ones too (theirs to each
in turn, which is that only where these are orthogonal to each other); components that don't divide evenly go to the
first lessons (there they are left out); past components have no gradient at all, so that no weight decay changes them.
From the paper in: nothing.

Expected (class-incremental, ViT-B/16 of IN-1k, final accuracy): Split CIFAR-100 of 10 86.25; Split ImageNet-R of 5, 10,
20 76.51, 75.45, 72.37; DomainNet of 5 73.24 (the paper).
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from vlprompt.core.head import Head, Prepared
from vlprompt.core.images import Images
from vlprompt.core.method import Output, TowerMethod
from vlprompt.core.prompt import KV, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, VisionTower


class CODAPrompt(TowerMethod[VisionTower]):
    """Prefixes that are attention-weighted sums of components.

    Args:
        tower: frozen image tower.
        head: maps features to class logits.
        pool_size: number of components of all lessons together (M), divided evenly.
        prompt_length: of a prefix, half keys and half values (0: none).
        n_layers: number of first layers with prefixes, clipped to the tower's depth.
        orthogonality_weight: of the penalty on components, keys and attention vectors that are not orthonormal.
    """

    def __init__(
        self,
        tower: VisionTower,
        head: Head,
        pool_size: int = 100,
        prompt_length: int = 8,
        n_layers: int = 5,
        orthogonality_weight: float = 0.1,
    ):
        super().__init__()
        self.tower, self.head, self.pool_size, self.prompt_length = tower, head, pool_size, prompt_length
        self.n_layers, self.orthogonality_weight = n_layers, orthogonality_weight

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(pool_size=1, prompt_length=0, orthogonality_weight=0)
        if self.prompt_length % 2:
            raise ValueError(
                f"method.prompt_length: expected an even number, half keys and half values, got {self.prompt_length}. "
                "Set an even method.prompt_length."
            )
        if self.prompt_length:
            self.tower.require_blocks()
            self.validate(lesson)
        super().begin_lesson(lesson, generator)
        if self.prompt_length:
            self.add_components(lesson, generator)

    def validate(self, lesson: Lesson) -> None:
        """Check that the components can be divided among the lessons and can be orthogonal; ValueError if not."""
        n_dims = min(self.tower.feature_dim, self.prompt_length * self.tower.dim)
        if lesson.total is None:
            raise ValueError(
                "coda_prompt: expected a stream with a known number of lessons, among which the components are "
                "divided, got an unknown number. Use l2p, or dualprompt with method.pool_size."
            )
        if self.pool_size < lesson.total:
            raise ValueError(
                f"method.pool_size: expected at least {lesson.total}, one component for each lesson, got "
                f"{self.pool_size}. Set a higher method.pool_size."
            )
        if self.pool_size > n_dims:
            raise ValueError(
                f"method.pool_size: expected at most {n_dims}, the dimensions in which components can be orthogonal, "
                f"got {self.pool_size}. Set method.pool_size to at most {n_dims}."
            )

    def build(self, generator: torch.Generator) -> None:
        self.depth = self.clip_to_depth("n_layers", self.tower.depth)
        self.components, self.keys, self.attention_vectors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()

    def add_components(self, lesson: Lesson, generator: torch.Generator) -> None:
        """Add this lesson's components (layers, m, P, D), keys and attention vectors (layers, m, E)."""
        assert lesson.total is not None, "validate() has checked"
        m = self.pool_size // lesson.total + (lesson.index < self.pool_size % lesson.total)
        shapes = ((self.prompt_length, self.tower.dim), (self.tower.feature_dim,), (self.tower.feature_dim,))
        for params, shape in zip((self.components, self.keys, self.attention_vectors), shapes, strict=True):
            earlier = [p.detach().flatten(2).cpu() for p in params]
            drawn = torch.randn(self.depth, m, *shape, generator=generator).flatten(2)
            added = orthonormalize(torch.cat([*earlier, drawn], 1))[:, -m:].unflatten(-1, shape)
            params.requires_grad_(False)
            params.append(nn.Parameter(added.to(self.tower.device)))

    def compute_weights(self, query: Tensor) -> Tensor:
        """Compute cos(q * A, K) of image features (B, E) -> (layers, B, M)."""
        keys, attention = torch.cat(list(self.keys), 1), torch.cat(list(self.attention_vectors), 1)
        dots = query @ (attention * Clip.unit(keys)).mT
        return dots / (query.square() @ attention.square().mT).clamp(min=1e-24).sqrt()

    def compute_penalty(self) -> Tensor:
        """Compute the weighted mean square distance from orthonormality, summed over layers and kinds of vectors."""
        total = torch.zeros((), device=self.tower.device)
        for params in (self.components, self.keys, self.attention_vectors):
            x = torch.cat(list(params), 1).flatten(2)  # (layers, M, E)
            total = total + (x @ x.mT - torch.eye(x.shape[1], device=x.device)).square().mean((1, 2)).sum()
        return self.orthogonality_weight * total

    def forward(self, inputs: Images, prepared: tuple[VisionTower, Prepared]) -> Output:
        query = self.tower(inputs)  # (B, E), without a prompt: from the feature cache
        if not self.prompt_length:
            return Output(self.head(query, prepared[1]), image_features=query)
        weights, h = self.compute_weights(query), self.tower.n_heads
        components = rearrange(torch.cat(list(self.components), 1), "layers m p d -> layers m (p d)")
        keys, values = rearrange(
            weights @ components, "layers b (kv p h d) -> kv layers b h p d", kv=2, p=self.prompt_length // 2, h=h
        )
        prefix: dict[int | str, KV] = dict(enumerate(zip(keys, values, strict=True)))
        image = self.tower(inputs, Prompt(prefix=prefix))
        usage = weights.detach().abs().mean(0)  # (B, M)
        usage = usage / usage.sum(-1, keepdim=True).clamp(min=1e-12)
        penalty = self.compute_penalty() if self.orthogonality_weight and self.training else 0.0
        return Output(self.head(image, prepared[1]), penalty, image, prompt_usage=usage)


def orthonormalize(rows: Tensor) -> Tensor:
    """Gram-Schmidt: each row (..., m, E) less its part in the span of those before it, of unit length."""
    q, r = torch.linalg.qr(rows.double().mT)
    return (q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]).mT.to(rows.dtype)
