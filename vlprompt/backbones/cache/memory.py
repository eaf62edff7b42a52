"""What a tower computed and remembers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlprompt.core.images import lasting, lasts
from vlprompt.core.prompt import NOTHING, Prompt

if TYPE_CHECKING:
    from vlprompt.backbones.cache.disk import Shelf


MOST = 2**31  # bytes
EACH = 700  # bytes of a key and of what a small tensor is besides its numbers, as measured


@dataclass
class Counts:
    """How many features were asked for and there, and how many were computed; of a tower and all made of it."""

    found: int = 0
    computed: int = 0


class Kept:
    """Tensors by key, up to `most` bytes; then some go, at random (the oldest are what the next epoch wants first).

    shelf: what keeps those whose keys last on the disk too.
    """

    def __init__(self, most: int = MOST, counts: Counts | None = None):
        self.most, self.bytes, self.counts = most, 0, counts or Counts()
        self.shelf: Shelf | None = None
        self._shelf_for: Callable[[Any], Shelf] | None = None
        self.fresh: dict[str, Tensor] | None = None  # what was computed since others were told; None: there are none
        self._tensors, self._order, self._chance = dict[str, Tensor](), list[str](), Random(0)

    def like(self, shelf_for: Callable[[Any], Shelf] | None, tower: Any) -> Kept:
        """An empty one for `tower`, whose shelf is what `shelf_for` gives; the counts are the same."""
        made = Kept(self.most, self.counts)
        made._shelf_for = shelf_for
        made.shelf = None if shelf_for is None else shelf_for(tower)
        return made

    def of(self, tower: Any) -> Kept:
        """An empty one for a tower that was made of this one's and has the same weights."""
        return self.like(self._shelf_for, tower)

    def __len__(self) -> int:
        return len(self._tensors)

    def get(self, key: str | None) -> Tensor | None:
        if key is None:
            return None
        found = self._tensors.get(key)
        if found is None and self.shelf is not None and lasts(key) and (found := self.shelf.get(key)) is not None:
            self.hold(key, found)
        self.counts.found += found is not None
        return found

    def keep(self, key: str, tensor: Tensor) -> None:
        """Of a key that it has not."""
        self.counts.computed += 1
        self.hold(key, tensor)
        if self.fresh is not None:
            self.fresh[key] = tensor
        if self.shelf is not None and lasts(key):
            self.shelf.add(key, tensor)

    def flush(self) -> None:
        """Write what is new, of this tower and of all that share its store."""
        if self.shelf is not None:
            self.shelf.store.flush()

    def hold(self, key: str, tensor: Tensor) -> None:
        """What was computed elsewhere."""
        self._tensors[key] = tensor
        self._order.append(key)
        self.bytes += tensor.nbytes + EACH
        while self.bytes > self.most and len(self._order) > 1:
            i = self._chance.randrange(len(self._order) - 1)
            self._order[i], self._order[-1] = self._order[-1], self._order[i]
            self.bytes -= self._tensors.pop(self._order.pop()).nbytes + EACH


def looked_up(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Around the call of a text tower: where it has a shelf, fixed texts are looked up there, a whole list at once.

    So their bits are those of this very list. Not under autocast or with gradients, where other numbers may come.
    """

    @wraps(call)
    def found(self: Any, texts: Sequence[str], prompt: Prompt = NOTHING, read: str = "pooled") -> Tensor:
        shelf: Shelf | None = getattr(self, "shelf", None)
        if shelf is None or prompt or torch.is_grad_enabled() or torch.is_autocast_enabled(self.device.type):
            return call(self, texts, prompt, read)
        key = lasting(read, repr([str(text) for text in texts]))
        if (before := shelf.get(key)) is not None:
            return before.clone()
        made = call(self, texts, prompt, read)
        shelf.add(key, made.clone())
        return made

    return found
