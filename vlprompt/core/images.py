"""Images as values: how a tower wants its pixels, augmented views, items that can be decoded, batches of them."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vlprompt.runtime import threads
from vlprompt.runtime.seeding import number

LASTING = "lasting:"  # begins the keys that mean the same picture in any process, so that features last with them


def lasting(*parts: object) -> str:
    """A key that means the same picture in any process, as long as there is one."""
    return LASTING + "|".join(map(str, parts))


def lasts(key: str) -> bool:
    return key.startswith(LASTING)


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

    def once(self, look: Look, view: View | None) -> Tensor:
        """The same pixels, for who will not ask for them again: nothing is kept that only this sight needs."""
        return getattr(self.pixels, "once", self.pixels)(look, view)


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
            self._done[look] = self.some(look, range(len(self)))
        return self._done[look]

    def view(self, augment: str, k: int) -> "Images":
        """The k-th augmented view of each image, always the same one; ValueError where only pixels are there."""
        if self._again is None:
            raise ValueError("these images are pixels, so they have no other views; give them as files or pictures")
        return self._again(augment, k)

    def some(self, look: Look, places: Sequence[int], once: bool = False) -> Tensor:
        """The pixels of some of them; nothing else is decoded. once: who asks will not ask again."""
        return self._done[look][list(places)] if look in self._done else self._decode(look, places)

    def start(self, look: Look, places: Sequence[int], once: bool = False) -> None:
        """Have some of them decoded meanwhile, where it has paid; `some` and `pixels` then wait for them."""

    def part(self, begin: int, end: int) -> "Images":
        """Those from `begin` to before `end`."""
        return _Part(self, begin, end)


class _Part(Images):
    """Neighbours among other images."""

    def __init__(self, whole: Images, begin: int, end: int):
        super().__init__(whole.some, whole.keys[begin:end], lambda augment, k: whole.view(augment, k).part(begin, end))
        self.whole, self.begin = whole, begin

    def some(self, look: Look, places: Sequence[int], once: bool = False) -> Tensor:
        if look in self._done:
            return self._done[look][list(places)]
        return self.whole.some(look, [self.begin + p for p in places], once)

    def start(self, look: Look, places: Sequence[int], once: bool = False) -> None:
        self.whole.start(look, [self.begin + p for p in places], once)


Asked = dict[tuple[Look, bool], list[int]]  # look and once -> places


class Pictures(Images):
    """Images of items, each in its view (None: as it is), which the workers decode.

    asked: what was asked of them, where it was worth a thread.
    """

    def __init__(self, items: Sequence[Item], views: Sequence[View | None]):
        both = tuple(zip(items, views, strict=True))
        keys = [item.key if v is None else f"{item.key}|{v.augment}|{v.seed}" for item, v in both]
        one = partial(_seen, both)  # not a method: a circle would keep the pixels until Python looks for circles
        decode = lambda look, places: torch.stack([one(p, look, False) for p in places])  # noqa: E731
        super().__init__(decode, keys, lambda augment, k: picked(items, [_again(i, augment, k) for i in items]))
        self._one, self._begun, self.asked = one, dict[Look, dict[int, Future[Tensor]]](), Asked()
        self._pays = False

    def some(self, look: Look, places: Sequence[int], once: bool = False) -> Tensor:
        if look in self._done:
            return self._done[look][list(places)]
        begun = self._begun.get(look, {})
        ahead = {p: begun.pop(p) for p in places if p in begun}
        rest = [p for p in places if p not in ahead]
        made, worth = threads.each(lambda p: self._one(p, look, once), rest)
        self._pays = self._pays or worth
        if self._pays:
            self.asked.setdefault((look, once), []).extend(places)
        found = dict(zip(rest, made, strict=True)) | {p: one.result() for p, one in ahead.items()}
        return torch.stack([found[p] for p in places])

    def start(self, look: Look, places: Sequence[int], once: bool = False) -> None:
        begun = self._begun.setdefault(look, {})
        for p in places if self._pays and look not in self._done else ():
            if p not in begun and (one := threads.start(self._one, p, look, once)) is not None:
                begun[p] = one

    def follow(self, asked: Asked) -> None:
        """Start what was asked of others, at the same places."""
        self._pays = self._pays or bool(asked)
        for (look, once), places in asked.items():
            self.start(look, sorted({p for p in places if p < len(self)}), once)

    def leave(self) -> None:
        """What was started and not begun is not done; nobody will ask for it."""
        for begun in self._begun.values():
            for one in begun.values():
                one.cancel()
        self._begun.clear()


def _seen(both: "Sequence[tuple[Item, View | None]]", place: int, look: Look, once: bool) -> Tensor:
    item, view = both[place]
    return item.once(look, view) if once else item.pixels(look, view)


def _again(item: Item, augment: str, k: int) -> View:
    return View(augment, number("view", k, item.name))


def picked(items: Sequence[Item], views: Sequence[View | None]) -> Images:
    """Images of items, each in its view (None: as it is)."""
    return Pictures(items, views)
