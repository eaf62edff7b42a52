"""Entropic optimal transport between two sets of vectors, by Sinkhorn's rounds, each pair of sets by itself."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_EPSILON = 0.025  # exp(-2 / epsilon), the kernel of opposite vectors, must not vanish in float32


@torch.no_grad()
def compute_transport_plan(similarity: Tensor, epsilon: float, max_rounds: int, threshold: float) -> Tensor:
    """Compute how a uniform mass on M vectors moves to N vectors at the cost 1 - similarity.

    A round fits the rows and then the columns, so that the sums of the columns are exact. Each pair of sets stops by
    itself, so that its plan does not depend on which others stand beside it.

    Args:
        similarity: (..., M, N, C), of each pair of sets: of an image, and of each of C classes.
        epsilon: weight of the entropy, at least `MIN_EPSILON` for cosines.
        max_rounds: after which a pair stops at the latest.
        threshold: a pair stops when the mean change of the factors of its M rows is below it; 0: never.

    Returns:
        (..., M, N, C), without gradient: columns add up to 1 / N, and rows to 1 / M as far as the rounds have come.
    """
    m, n, _ = similarity.shape[-3:]
    cost = 1 - similarity.to(torch.promote_types(similarity.dtype, torch.float32))
    kernel = torch.exp(-cost / epsilon)
    rows, columns = torch.ones_like(kernel[..., :1, :]), torch.ones_like(kernel[..., :1, :, :])
    is_moving = torch.ones_like(rows[..., :1, :, :], dtype=torch.bool)  # (..., 1, 1, C)
    for _ in range(max_rounds):
        new_rows = 1 / m / (kernel * columns).sum(-2, keepdim=True)
        new_columns = 1 / n / (kernel * new_rows).sum(-3, keepdim=True)
        change = (new_rows - rows).abs().mean(-3, keepdim=True)
        rows, columns = torch.where(is_moving, new_rows, rows), torch.where(is_moving, new_columns, columns)
        is_moving = is_moving & (change >= threshold)
        if not torch.compiler.is_exporting() and not bool(is_moving.any()):  # later rounds would change nothing
            break
    return rows * kernel * columns


def compute_transport_scores(image: Tensor, text: Tensor, epsilon: float, max_rounds: int, threshold: float) -> Tensor:
    """Compute the mean cosine of images and classes under the transport plan of their sets of features.

    Args:
        image: (B, M, E), a set for each image; normalised here.
        text: (N, C, E), a set for each class; normalised here.
        epsilon: as of `compute_transport_plan`.
        max_rounds: as there.
        threshold: as there.

    Returns:
        (B, C); no gradient goes through the plan.
    """
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    cosines = image.flatten(0, 1) @ text.flatten(0, 1).T  # (B * M, N * C)
    similarity = cosines.view(*image.shape[:2], *text.shape[:2])  # (B, M, N, C)
    plan = compute_transport_plan(similarity, epsilon, max_rounds, threshold)
    return (plan * similarity).sum((1, 2))


@torch.no_grad()
def assign_evenly(similarity: Tensor, epsilon: float, max_rounds: int = 1000, tolerance: float = 1e-7) -> Tensor:
    """Assign N items to C classes by entropic optimal transport, so that all classes receive equally much.

    Computed on logarithms, so that no epsilon underflows.

    Args:
        similarity: (N, C), minus the cost.
        epsilon: weight of the entropy, above 0.
        max_rounds: after which it stops at the latest.
        tolerance: relative error of what the classes receive at which it stops.

    Returns:
        (N, C) in float64: rows add up to 1, columns to N / C as far as the rounds have come.
    """
    scores = similarity.double() / epsilon
    log_share = math.log(scores.shape[0] / scores.shape[1])
    rows = scores.new_zeros(scores.shape[0], 1)
    plan = scores
    for i in range(max_rounds):
        columns = log_share - (scores + rows).logsumexp(0)
        rows = -(scores + columns).logsumexp(1, keepdim=True)
        plan = scores + rows + columns
        if i % 10 == 9 and float((plan.logsumexp(0) - log_share).abs().max()) <= tolerance:
            break
    return plan.exp()
