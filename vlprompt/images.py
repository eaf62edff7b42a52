"""Images as values: how a tower wants its pixels, augmented views, items that can be decoded, batches of them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LASTING = "lasting:"  # begins the keys that mean the same picture in any process, so that features last with them


def lasting(*parts: object) -> str:
    """A key that means the same picture in any process, as long as there is one."""
    return LASTING + "|".join(map(str, parts))


def lasts(key: str) -> bool:
    return key.startswith(LASTING)


def number(*key: object) -> int:
    """A 63-bit number from any key, the same in every process: where all random streams start."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def generator(*key: object) -> torch.Generator:
    return torch.Generator().manual_seed(number(*key))


@dataclass(frozen=True)
class Look:
    """How a tower wants its pixels: size (h, w), mean and std per channel, and how a picture is brought to that size.

    resize: "shortest" (then the centre is cut out) or "squash"; interpolation: "bicubic" or "bilinear"; crop: the share
    of the resized side that is cut out (224 of 256 is 0.875); antialias: False samples the picture at points.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"
    resize: str = "shortest"
    crop: float = 1.0
    antialias: bool = True


@dataclass(frozen=True)
class View:
    """One augmented sight of an image: the kind of augmentation and the number that all its randomness comes from."""

    augment: str
    seed: int


@dataclass(frozen=True, slots=True)
class Item:
    """An image that can be decoded: `pixels(look, view)` -> (3, h, w), `key` tells it from any other image.

    A key that `lasting` made does so in all processes; any other is good for this one only.
    name: where it stands in its dataset, the same on every machine; it goes into the hash of a split and into the seed
    of a view. Without one it is the key.
    """

    key: str
    pixels: Callable[[Look, View | None], Tensor]
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.key.removeprefix(LASTING))


class Images:
    """B images that know their keys (None: drawn anew, never stored) and are decoded at most once for a look.

    again: makes another view of the same images, for methods that look several times.
    """

    def __init__(
        self,
        decode: Callable[[Look, Sequence[int]], Tensor],
        keys: Sequence[str | None],
        again: "Callable[[str, int], Images] | None" = None,
    ):
        self.keys, self._decode, self._again = tuple(keys), decode, again
        self._done: dict[Look, Tensor] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def pixels(self, look: Look) -> Tensor:
        """(B, 3, h, w), normalised as the look says."""
        if look not in self._done:
            self._done[look] = self._decode(look, range(len(self)))
        return self._done[look]

    def view(self, augment: str, k: int) -> "Images":
        """The k-th augmented view of each image, always the same one; ValueError where only pixels are there."""
        if self._again is None:
            raise ValueError("these images are pixels, so they have no other views; give them as files or pictures")
        return self._again(augment, k)

    def some(self, look: Look, places: Sequence[int]) -> Tensor:
        """The pixels of some of them; nothing else is decoded."""
        return self._done[look][list(places)] if look in self._done else self._decode(look, places)

    def part(self, begin: int, end: int) -> "Images":
        """Those from `begin` to before `end`."""
        return Images(
            lambda look, places: self.some(look, [begin + p for p in places]),
            self.keys[begin:end],
            lambda augment, k: self.view(augment, k).part(begin, end),
        )


def picked(items: "Sequence[Item]", views: "Sequence[View | None]") -> Images:
    """Images of items, each in its view (None: as it is)."""
    keys = [item.key if v is None else f"{item.key}|{v.augment}|{v.seed}" for item, v in zip(items, views, strict=True)]
    return Images(
        lambda look, places: torch.stack([items[p].pixels(look, views[p]) for p in places]),
        keys,
        lambda augment, k: picked(items, [View(augment, number("view", k, item.name)) for item in items]),
    )
