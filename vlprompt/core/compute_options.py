"""How a tower computes its passes: the same numbers with less memory, or in less time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

from torch import Tensor

Step = Callable[..., Tensor]  # one block on some rows, as tower.step


@dataclass(frozen=True)
class How:
    """checkpointing: what a layer made is made again going back, instead of being kept (exact; about a third slower).

    chunk: so many texts at once (None: all), each chunk made again going back (exact). compile: torch.compile of each
    layer, equal up to rounding. graphs: on a GPU, passes of texts that come again are recorded and replayed
    (graphs.py), where nothing else is asked for.
    """

    checkpointing: bool = False
    chunk: int | None = None
    compile: bool = False
    graphs: bool = True

    def by(self, step: Step) -> Step:
        """A block's step in this way."""
        step = compiled(step) if self.compile else step
        return partial(again, step) if self.checkpointing else step


PLAINLY = How()


def again(make: Step, *given: Any) -> Tensor:
    """make(*given), which keeps nothing of what it does and is made again when its gradient is asked for."""
    from torch.utils.checkpoint import checkpoint

    return cast(Tensor, checkpoint(make, *given, use_reentrant=False))


@lru_cache
def compiled(step: Step) -> Step:
    import torch

    return torch.compile(step)
