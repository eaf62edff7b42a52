"""What the low-rank methods share: the updates, and a check of the sites."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import AnyTower
from vlprompt.layers.adapters import LowRankAdapter

NON_LINEAR_SITES = ("attn", "mlp", "norm")


def require_linear_sites(sites: Sequence[str]) -> None:
    """Check that `method.sites` names kinds of linear maps, one at least; ValueError if not."""
    if not sites:
        raise ValueError("method.sites: expected one linear map at least, got none. Take some of q k v out up down.")
    for site in sites:
        if not site.isalpha() or site in NON_LINEAR_SITES:
            raise ValueError(
                f"method.sites: expected linear maps (q k v out up down gate patch), got {site!r}. Take some of these."
            )


class LowRankUpdate(NamedTuple):
    """outputs + up(down(inputs)), with down (r, fan_in) and up (fan_out, r), which a method computes for one pass."""

    down: Tensor
    up: Tensor

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return outputs + inputs @ self.down.T @ self.up.T

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.up @ self.down, bias


class MatrixUpdate(NamedTuple):
    """outputs + change(inputs), with change (fan_out, fan_in)."""

    change: Tensor

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return outputs + inputs @ self.change.T

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.change, bias


class LowRankMethod(TowerMethod[AnyTower]):
    """Low-rank updates of the linear maps of a tower.

    Args:
        tower: frozen image tower or language model.
        head: maps features to class logits.
        rank: of an update.
        alpha: an update is `scale` times up down x, by default alpha / rank.
        sites: kinds of linear maps.
        dropout: on the input of an update.

    Attributes:
        adapter_type: makes the update of one map.
    """

    adapter_type: type[LowRankAdapter] = LowRankAdapter

    def __init__(
        self, tower: AnyTower, head: Head, rank: int, alpha: float, sites: Sequence[str], dropout: float
    ) -> None:
        super().__init__()
        self.tower, self.head, self.rank, self.alpha = tower, head, rank, alpha
        self.sites, self.dropout = tuple(sites), dropout

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def find_sites(self) -> dict[str, tuple[int, int]]:
        """Return the maps that get an update, with their widths; ValueError for settings that do not fit the tower."""
        require_linear_sites(self.sites)
        return self.tower.sites(*self.sites)

    def build(self, generator: torch.Generator) -> None:
        self.require_at_least(rank=1, dropout=0)
        options = (self.rank, self.scale, self.dropout, generator, self.tower.device)
        self.adapters = nn.ModuleDict(
            {site: self.adapter_type(fans, *options) for site, fans in self.find_sites().items()}
        )

    def prompt(self, n: int) -> Prompt:
        return Prompt(adapters=self.adapters)
