"""Prompt: everything that a method adds to one pass of a frozen tower."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

KV = tuple[Tensor, Tensor]  # keys, values: (R, H, P, Dh); R = 1 or the batch
Part = Callable[[Tensor, Tensor], Tensor]  # f(given, made) -> made


@dataclass(frozen=True)
class Prompt:
    """What goes in; towers never change it.

    tokens: layer -> (R, P, D), or (R, C, P, D) where each class has its own; the first layer inserts, later ones
    replace. prefix: layer -> keys and values (R, H, P, Dh) that attention sees before its own. beside: site -> f(given,
    made) -> made, for example {"3/q": part}; a dict or an nn.ModuleDict.
    """

    tokens: Mapping[int, Tensor] = field(default_factory=dict)
    prefix: Mapping[int | str, KV] = field(default_factory=dict)
    beside: Any = field(default_factory=dict)  # Mapping[str, Part]; an nn.ModuleDict has no .get

    def __bool__(self) -> bool:
        return bool(len(self.tokens) or len(self.prefix) or len(self.beside))

    @property
    def length(self) -> int:
        """P, the number of tokens; ValueError when layers disagree."""
        lengths = {t.shape[-2] for t in self.tokens.values()}
        if len(lengths) > 1:
            raise ValueError(
                f"the tokens of one prompt have lengths {sorted(lengths)}, but a later layer replaces what an earlier "
                "one inserted: give every layer the same number"
            )
        return next(iter(lengths), 0)

    @property
    def mixes_rows(self) -> bool:
        """Whether a part lets rows see each other (Convpass); then no row may be left out."""
        return any(getattr(self.beside[site], "mixes_rows", False) for site in self.beside)

    def part(self, site: str, given: Tensor, made: Tensor) -> Tensor:
        """What a frozen map made, changed by what stands beside it."""
        return self.beside[site](given, made) if site in self.beside else made


NOTHING = Prompt()
