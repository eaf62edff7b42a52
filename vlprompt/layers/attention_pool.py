"""The attention pool of a CLIP's ResNet: features of all places of an image, not of the pooled one alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlprompt.layers.blocks.attention import attend, merge_heads, split_heads
from vlprompt.layers.frozen_maps import FrozenMap


@dataclass(frozen=True)
class AttentionPool:
    """The frozen maps of an attention pool over the mean of a grid and the grid.

    Args:
        n_heads: H.
        positions: (1 + N, D), of the mean and of the N places of the grid.
        q: queries.
        k: keys.
        v: values.
        out: the projection of attention's output into the joint space.
    """

    n_heads: int
    positions: Tensor
    q: FrozenMap
    k: FrozenMap
    v: FrozenMap
    out: FrozenMap

    def read_rows(self, grid: Tensor, attends: bool = True, has_positions: bool = True) -> Tensor:
        """Return the features (B, 1 + N, E) of the mean, which is the pooled one, and of the places of a grid.

        Args:
            grid: (B, D, h, w).
            attends: whether rows see each other; each is its own value otherwise.
            has_positions: whether positions are added.
        """
        x = grid.flatten(2).transpose(1, 2)  # (B, N, D)
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        x = x + self.positions.to(x.dtype) if has_positions else x
        v = self.v(x)
        if attends:
            q, k, v = (split_heads(t, self.n_heads) for t in (self.q(x), self.k(x), v))
            v = merge_heads(attend(q, k, v))
        return self.out(v)
