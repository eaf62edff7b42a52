"""What a tower computed and remembers."""

from random import Random

from torch import Tensor

MOST = 2**31  # bytes
EACH = 700  # bytes of a key and of what a small tensor is besides its numbers, as measured


class Kept:
    """Tensors by key, up to `most` bytes; then some go, at random (the oldest are what the next epoch wants first)."""

    fresh: dict[str, Tensor] | None = None  # what was kept since another process was told; None: there is no other

    def __init__(self, most: int = MOST):
        self.most, self.bytes = most, 0
        self._tensors, self._order, self._chance = dict[str, Tensor](), list[str](), Random(0)

    def __len__(self) -> int:
        return len(self._tensors)

    def get(self, key: str | None) -> Tensor | None:
        return None if key is None else self._tensors.get(key)

    def keep(self, key: str, tensor: Tensor) -> None:
        """Of a key that it has not."""
        self._tensors[key] = tensor
        self._order.append(key)
        if self.fresh is not None:
            self.fresh[key] = tensor
        self.bytes += tensor.nbytes + EACH
        while self.bytes > self.most and len(self._order) > 1:
            i = self._chance.randrange(len(self._order) - 1)
            self._order[i], self._order[-1] = self._order[-1], self._order[i]
            self.bytes -= self._tensors.pop(self._order.pop()).nbytes + EACH
