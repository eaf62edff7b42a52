"""Caches of test images, class by class, that an online method fills while it answers (TDA)."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Cache:
    """The images of each class with the lowest entropy among those of a stream so far.

    Args:
        keys: (C, K, E), their features.
        entropies: (C, K), ascending; infinite where nothing is stored.
        values: (C, K, C), what each says of every class, zeros where nothing is stored; None: each its own class.
    """

    keys: Tensor
    entropies: Tensor
    values: Tensor | None = None

    @classmethod
    def empty(cls, capacity: int, text: Tensor, has_values: bool = False) -> "Cache":
        """Return a cache of K images for each class of texts (C, E)."""
        n, dim = text.shape
        keys, entropies = text.new_zeros(n, capacity, dim), text.new_full((n, capacity), float("inf"))
        return cls(keys, entropies, text.new_zeros(n, capacity, n) if has_values else None)

    def offer(self, label: int, key: Tensor, image_entropy: Tensor, value: Tensor | None = None) -> None:
        """Store an image under a class where there is room, or instead of the last one if its entropy is lower."""
        if not self.entropies.shape[1] or not bool(image_entropy < self.entropies[label, -1]):
            return
        self.keys[label, -1], self.entropies[label, -1] = key, image_entropy
        order = self.entropies[label].argsort(stable=True)
        self.keys[label], self.entropies[label] = self.keys[label][order], self.entropies[label][order]
        if self.values is not None and value is not None:
            self.values[label, -1] = value
            self.values[label] = self.values[label][order]

    def compute_logits(self, key: Tensor, weight: float, sharpness: float) -> Tensor:
        """Return the weighted sum (C,) of what the stored images say, by their similarity to a feature (E,)."""
        similarity = (-sharpness * (1 - self.keys @ key)).exp()  # (C, K)
        if self.values is None:
            return weight * (similarity * self.entropies.isfinite()).sum(-1)
        return weight * (similarity.flatten() @ self.values.flatten(0, 1))


@dataclass
class Stream:
    """Class texts (C, E), of unit length, and the two caches of a stream of test images, which every answer changes."""

    text: Tensor
    positive: Cache
    negative: Cache
