"""Training of a head on features that are drawn for all classes, as SLCA, MOS, TUNA and HiDe-Prompt align theirs."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Split
from vlprompt.core.head import Head
from vlprompt.core.images import Images
from vlprompt.layers.class_gaussians import ClassGaussians


class AlignmentSettings(NamedTuple):
    """Settings of a training on drawn features: SGD, a cosine stepped per epoch.

    Args:
        epochs: passes; each draws anew.
        lr: of the first epoch.
        batch_size: drawn features per step.
        momentum: of SGD.
        weight_decay: of SGD.
        period: of the cosine, in epochs; None for one fall over all.
        max_steps: of an epoch; the rest of its features is not used; None for all.
    """

    epochs: int
    lr: float
    batch_size: int
    momentum: float = 0.9
    weight_decay: float = 5e-4
    period: int | None = None
    max_steps: int | None = None


def align(
    parameters: Sequence[nn.Parameter],
    compute_loss: Callable[[Tensor, Tensor], Tensor],
    draws: Iterable[tuple[Tensor, Tensor]],
    settings: AlignmentSettings,
) -> None:
    """Train parameters on drawn features.

    Args:
        parameters: changed in place; whether they require a gradient stays as it was.
        compute_loss: of features (B, D) and their labels (B,).
        draws: features (N, D) and labels (N,) of each epoch, shuffled.
        settings: of the training.
    """
    required, velocities = [p.requires_grad for p in parameters], [torch.zeros_like(p) for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    for epoch, (features, labels) in zip(range(settings.epochs), draws, strict=False):
        lr = settings.lr * (1 + math.cos(math.pi * epoch / (settings.period or settings.epochs))) / 2
        batches = list(zip(features.split(settings.batch_size), labels.split(settings.batch_size), strict=True))
        for x, y in batches[: settings.max_steps]:
            with torch.enable_grad():
                grads = torch.autograd.grad(compute_loss(x, y), list(parameters))
            with torch.no_grad():  # as torch.optim.SGD, whose first call imports what takes longer than torch itself
                for p, grad, velocity in zip(parameters, grads, velocities, strict=True):
                    velocity.mul_(settings.momentum).add_(grad + settings.weight_decay * p)
                    p.sub_(lr * velocity)
    for p, requires_grad in zip(parameters, required, strict=True):
        p.requires_grad_(requires_grad)


def align_head(
    head: Head,
    gaussians: ClassGaussians,
    seed: int,
    settings: AlignmentSettings,
    mean_factors: Sequence[float] | None = None,
) -> None:
    """Train the parameters of a head that require a gradient by cross-entropy over all classes that have images.

    Args:
        head: one that finds its rows by the ids of classes; one without such parameters stays as it is.
        gaussians: of the classes.
        seed: of what is drawn.
        settings: of the training; each epoch draws batch_size features of each class (or of each of its centroids).
        mean_factors: of each class of the Gaussians; 1 by default.
    """
    parameters = [p for p in head.parameters() if p.requires_grad]
    rows = gaussians.counts.sum(1).nonzero()[:, 0].tolist()
    names = tuple(gaussians.class_ids[row] for row in rows)
    fixed = head.precompute(names) if parameters else None
    generator = torch.Generator().manual_seed(seed)
    factors = None if mean_factors is None else [mean_factors[row] for row in rows]
    draws = (gaussians.draw_classes(rows, settings.batch_size, generator, factors) for _ in range(settings.epochs))
    if parameters:
        align(parameters, lambda x, y: F.cross_entropy(head(x, head.prepare(names, fixed)), y), draws, settings)


@torch.no_grad()
def compute_features(encode: Callable[[Images], Tensor], train: Split, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Compute the features (N, D) of a lesson's images as a test sees them, and return them with their labels (N,)."""
    pairs = [(encode(batch.inputs), batch.labels) for batch in train.batches(batch_size)]
    features = torch.cat([x for x, _ in pairs])
    return features, torch.cat([y for _, y in pairs]).to(features.device)
