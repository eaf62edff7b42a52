"""One linear map for each layer of a tower, computed together."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def map_per_layer(maps: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Apply a linear layer for each of L layers, in one product.

    Args:
        maps: L linear layers (d -> D) with biases.
        x: the same rows (P, d) for all, or (L, P, d).

    Returns:
        (L, P, D).
    """
    layers = list(maps)
    weights, biases = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
    return x.expand(len(layers), -1, -1) @ weights.mT + biases[:, None]
