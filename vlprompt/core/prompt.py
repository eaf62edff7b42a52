"""Prompt: everything that a method adds to one pass of a frozen tower."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from torch import Tensor, nn

KV: TypeAlias = tuple[Tensor, Tensor]  # keys, values: (R, H, P, Dh); R = 1 or the batch
AdapterFn: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # f(input of a frozen map, its output) -> output


@dataclass(frozen=True)
class Prompt:
    """What a method injects into a tower; towers never change it.

    Args:
        tokens: layer -> (R, P, D), or (R, C, P, D) for class-specific tokens; the first layer inserts, later ones
            replace.
        prefix: layer -> keys and values (R, H, P, Dh) that attention sees before its own.
        adapters: site -> f(given, made) -> made, for example {"3/q": adapter}; a dict or an nn.ModuleDict.
        carry: layer -> fraction, a number or one of each token (P,), by which a row of the layer before goes on: it
            becomes carry * row + (1 - carry) * token. Without it tokens replace, as with 0; with 1 a row flows on.
        is_embedded: whether tokens at layer 0 are embedded as words and patches are: with positions in a text tower,
            through the norm before the first block in an image tower. Tokens that begin at a later layer never are.
        n_contexts: R in a text tower, where neither tokens nor prefixes have as many rows: adapters tell rows apart.
    """

    tokens: Mapping[int, Tensor] = field(default_factory=dict)
    prefix: Mapping[int | str, KV] = field(default_factory=dict)
    adapters: Mapping[str, AdapterFn] | nn.ModuleDict = field(default_factory=dict)  # an nn.ModuleDict has no .get
    carry: Mapping[int, float | Tensor] = field(default_factory=dict)
    is_embedded: bool = True
    n_contexts: int = 1

    def __bool__(self) -> bool:
        return bool(len(self.tokens) or len(self.prefix) or len(self.adapters))

    @property
    def length(self) -> int:
        """P, the number of tokens; ValueError if layers disagree."""
        lengths = {t.shape[-2] for t in self.tokens.values()}
        if len(lengths) > 1:
            raise ValueError(
                f"Prompt.tokens: expected one length for all layers, got {sorted(lengths)}. A later layer replaces "
                "what an earlier one inserted: give every layer the same number of tokens."
            )
        return next(iter(lengths), 0)

    @property
    def entry_layer(self) -> int | None:
        """The layer at which tokens come in as rows without embedding; None if they are embedded, or there are none."""
        first = min(self.tokens, default=None)
        return None if first == 0 and self.is_embedded else first

    @property
    def first_layer(self) -> int | None:
        """The first layer that it changes; None if it changes no layer (it is empty, or has the last norm alone)."""
        sites = (site.split("/")[0] for site in self.adapters if "/" in site)
        layers = [i for i in (*self.tokens, *self.prefix, *map(int, sites)) if isinstance(i, int)]
        return min(layers, default=None)

    @property
    def mixes_rows(self) -> bool:
        """Whether an adapter lets token positions see each other (Convpass); then none may be left out."""
        return any(getattr(self.adapters[site], "mixes_rows", False) for site in self.adapters)

    def select_texts(self, begin: int, end: int) -> "Prompt":
        """Return the prompt of a slice of the texts; tokens (R, C, P, D) are those of each text."""
        tokens = {i: t[:, begin:end] if t.ndim == 4 and t.shape[1] > 1 else t for i, t in self.tokens.items()}
        return replace(self, tokens=tokens)

    def apply_adapter(self, site: str, given: Tensor, made: Tensor) -> Tensor:
        """Apply the adapter at a site, if there is one, to the input and output of the frozen map there."""
        return self.adapters[site](given, made) if site in self.adapters else made


NOTHING = Prompt()
