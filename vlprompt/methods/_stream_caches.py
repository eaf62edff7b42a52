"""Caches of test images, class by class, that an online method fills while it answers (TDA)."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Cache:
    """The images of each class with the lowest entropy among those of a stream so far.

    Args:
        keys: (C, K, E), their features.
        entropies: (C, K), ascending; infinite where nothing is stored.
        values: (C, K, C), what each says of every class.
    """

    keys: Tensor
    entropies: Tensor
    values: Tensor

    @classmethod
    def empty(cls, capacity: int, text: Tensor) -> "Cache":
        """Return a cache of K images for each class of texts (C, E)."""
        n, dim = text.shape
        shapes = (n, capacity, dim), (n, capacity), (n, capacity, n)
        return cls(text.new_zeros(shapes[0]), text.new_full(shapes[1], float("inf")), text.new_zeros(shapes[2]))

    def offer(self, label: int, key: Tensor, image_entropy: Tensor, value: Tensor) -> None:
        """Store an image under a class where there is room, or instead of the last one if its entropy is lower."""
        if not self.entropies.shape[1] or not bool(image_entropy < self.entropies[label, -1]):
            return
        self.keys[label, -1], self.entropies[label, -1], self.values[label, -1] = key, image_entropy, value
        order = self.entropies[label].argsort(stable=True)
        for tensor in (self.keys, self.entropies, self.values):
            tensor[label] = tensor[label][order]

    def compute_logits(self, key: Tensor, weight: float, sharpness: float) -> Tensor:
        """Return the weighted sum (C,) of the stored values by their similarity to a feature (E,)."""
        is_stored = self.entropies.isfinite().flatten()
        similarity = (-sharpness * (1 - self.keys.flatten(0, 1) @ key)).exp() * is_stored
        return weight * (similarity @ self.values.flatten(0, 1))


@dataclass
class Stream:
    """Class texts (C, E), of unit length, and the two caches of a stream of test images, which every answer changes."""

    text: Tensor
    positive: Cache
    negative: Cache
