"""Passes whose rows the processes divide in a training step, and the gradients that find their way back.

Every process has computed a slice of the rows; all see all of them as a leaf of their graph. When the losses of all
processes have been differentiated, the gradients of the leaf are summed, and each process takes its own slice further.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vlprompt.runtime import collectives, distributed

FEWEST_ROWS = 32  # of each process, below which dividing a pass takes longer than it saves


class _Pass(NamedTuple):
    """What this process has computed, (.., rows of the slice, ..), and where its slice begins and ends along `dim`."""

    own: Tensor
    begin: int
    end: int
    dim: int


@dataclass
class DividedPasses:
    """The divided passes of one training step; `leaves` are their whole results, which losses are differentiated by.

    Args:
        fewest_rows: of each process, below which a pass is not divided.
    """

    leaves: list[Tensor] = field(default_factory=list)
    fewest_rows: int = FEWEST_ROWS
    _passes: list[_Pass] = field(default_factory=list)

    def compute(self, n_rows: int, dim: int, compute_slice: Callable[[int, int], Tensor]) -> Tensor:
        """Compute this rank's slice of the rows, and return those of all ranks."""
        begin, end = collectives.get_rank_slice(n_rows)
        own = compute_slice(begin, end)
        whole = own.new_zeros([n_rows if i == dim % own.ndim else n for i, n in enumerate(own.shape)])
        whole.narrow(dim, begin, end - begin).copy_(own.detach())  # the others add nothing to it: a sum is exact
        whole = _sum_over_processes([whole])[0]
        if torch.is_grad_enabled() and own.requires_grad:
            self.leaves.append(whole.requires_grad_())
            self._passes.append(_Pass(own, begin, end, dim))
        return whole

    def add_gradients(self, grads: dict[str, list[Tensor]], names: Sequence[str], parameters: Sequence[Tensor]) -> None:
        """Replace gradients by parameters and leaves with those by parameters alone, of this process's slices.

        Args:
            grads: of each loss term of this process, by the parameters and then the leaves; changed in place.
            names: of the terms of all processes, in one order.
            parameters: the trained ones.
        """
        for k in reversed(range(len(self._passes))):
            own, begin, end, dim = self._passes[k]
            at = len(parameters) + k
            summed = _sum_over_processes(
                [grads[name][at] if name in grads else torch.zeros_like(self.leaves[k]) for name in names]
            )
            for name, gradient in zip(names, summed, strict=True):
                further = torch.autograd.grad(
                    (own * gradient.narrow(dim, begin, end - begin)).sum(),
                    [*parameters, *self.leaves[:k]],
                    retain_graph=k > 0 or name != names[-1],  # passes may share what is before them
                    allow_unused=True,
                    materialize_grads=True,
                )
                before = grads.get(name) or [torch.zeros_like(x) for x in (*parameters, *self.leaves)]
                grads[name] = [a + b for a, b in zip(before, further, strict=False)]  # without this leaf and later ones


def _sum_over_processes(tensors: list[Tensor]) -> list[Tensor]:
    """Sum tensors of any precision; halves as float32, which is exact for values and closer for sums."""
    wide = [x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in tensors]
    return [x.to(before.dtype) for x, before in zip(distributed.all_reduce_sum(wide), tensors, strict=True)]


_state: dict[str, DividedPasses | None] = {"passes": None}


@contextmanager
def dividing(passes: DividedPasses | None) -> Iterator[None]:
    """Divide the passes that the with-block makes; all processes must make the same ones. None: nothing is divided."""
    previous, _state["passes"] = _state["passes"], passes
    try:
        yield
    finally:
        _state["passes"] = previous


def divided_passes(n_rows: int) -> DividedPasses | None:
    """Return what divides a pass of n_rows; None where each process computes all of them."""
    passes = _state["passes"]
    return passes if passes and n_rows >= passes.fewest_rows * distributed.get_world_size() else None
