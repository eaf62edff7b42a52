"""Entropic optimal transport between two sets of vectors, by Sinkhorn's rounds, each pair of sets by itself."""

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
        similarity: (M, N, ...), of each pair of sets behind the first two.
        epsilon: weight of the entropy, at least `MIN_EPSILON` for cosines.
        max_rounds: after which a pair stops at the latest.
        threshold: a pair stops when the mean change of the factors of its M rows is below it; 0: never.

    Returns:
        (M, N, ...), without gradient: columns add up to 1 / N, and rows to 1 / M as far as the rounds have come.
    """
    m, n, *pairs = similarity.shape
    cost = 1 - similarity.to(torch.promote_types(similarity.dtype, torch.float32))
    kernel = torch.exp(-cost / epsilon).contiguous()  # (M, N, ...)
    rows, columns = kernel.new_ones(m, *pairs), kernel.new_ones(n, *pairs)
    is_moving = torch.ones(pairs, dtype=torch.bool, device=kernel.device)
    for _ in range(max_rounds):
        new_rows = 1 / m / (kernel * columns).sum(1)
        new_columns = 1 / n / (kernel * new_rows[:, None]).sum(0)
        change = (new_rows - rows).abs().mean(0)
        rows, columns = torch.where(is_moving, new_rows, rows), torch.where(is_moving, new_columns, columns)
        is_moving = is_moving & (change >= threshold)
        if not torch.compiler.is_exporting() and not bool(is_moving.any()):  # later rounds would change nothing
            break
    return rows[:, None] * kernel * columns


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
    similarity = cosines.view(*image.shape[:2], *text.shape[:2]).permute(1, 2, 0, 3)  # (M, N, B, C)
    plan = compute_transport_plan(similarity, epsilon, max_rounds, threshold)
    return (plan * similarity).sum((0, 1))
