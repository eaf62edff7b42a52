"""LoRA-FA: Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation", 2023, arXiv:2308.03303.

LoRA whose first factor stays as it was drawn: y = W x + scale * up(down(x)), and only up is trained. For a square map
that is half of the parameters of LoRA, and of the input of a map the backward pass stores only down(x). Sites: q and v,
or any other linear maps.

Differs from the paper in: the first factor is drawn within torch's uniform bounds, as PEFT draws it, and not from a
normal distribution; the gradient is used as it is, not corrected for the frozen factor (the later version of the paper
does that, and PEFT's optimizer for it). The frozen factor is in the saved state.

Expected: on a par with LoRA (paper, RoBERTa, T5 and LLaMA), with up to 1.4 times less memory than it.
"""

from vlprompt.core.head import Head
from vlprompt.core.towers import AnyTower
from vlprompt.layers.adapters import LowRankAdapter
from vlprompt.methods._low_rank import LowRankMethod


class _FrozenDownLowRank(LowRankAdapter):
    """A low-rank update whose first factor is a buffer, not a parameter."""

    trains_down = False


class LoRAFA(LowRankMethod):
    """Low-rank updates with a frozen first factor, of the linear maps of an image tower or a language model.

    Args:
        tower: frozen image tower or language model.
        head: maps features to class logits.
        rank: of an update.
        alpha: an update is alpha / rank times up down x.
        sites: kinds of linear maps (q k v out up down gate patch).
        dropout: on the input of an update.
    """

    is_mergeable = True
    adapter_type = _FrozenDownLowRank

    def __init__(
        self,
        tower: AnyTower,
        head: Head,
        rank: int = 8,
        alpha: float = 16.0,
        sites: tuple[str, ...] = ("q", "v"),
        dropout: float = 0.0,
    ):
        super().__init__(tower, head, rank, alpha, sites, dropout)
