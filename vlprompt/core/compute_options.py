"""How towers compute their passes: the same numbers with less memory, or in less time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, cast

from torch import Tensor

BlockFn: TypeAlias = Callable[..., Tensor]  # runs one block on some rows, as layers.block.run_block does


@dataclass(frozen=True)
class ComputeOptions:
    """Options of how blocks are run.

    Args:
        activation_checkpointing: recompute layer activations in the backward pass instead of storing them (exact;
            about 30% slower).
        text_micro_batch: texts per pass, recomputed in the backward pass (exact, but for what dropout draws); None for
            all at once.
        cuda_graphs: on a GPU, record repeated passes of texts and images and replay them, unless another option is set.
    """

    activation_checkpointing: bool = False
    text_micro_batch: int | None = None
    cuda_graphs: bool = True

    def wrap_block_fn(self, block_fn: BlockFn) -> BlockFn:
        """Apply the options to the function that runs one block."""
        return partial(recompute_in_backward, block_fn) if self.activation_checkpointing else block_fn


DEFAULT_COMPUTE_OPTIONS = ComputeOptions()


def recompute_in_backward(fn: BlockFn, *args: object) -> Tensor:
    """Call fn(*args) without storing activations; they are recomputed in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    return cast(Tensor, checkpoint(fn, *args, use_reentrant=False))
