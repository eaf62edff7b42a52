"""Images whose labels nobody can tell from what is shown of them: not by a path, a key, a name or the order."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from vlprompt.core.batch import Split, Unlabelled
from vlprompt.core.images import Item, Look, View, lasting, lasts

_DECODERS: dict[str, Callable[[Look, View | None], Tensor]] = {}  # kept here, so that no item leads to its file


class _Pixels:
    """Decodes an image that is known by a hash only."""

    __slots__ = ("key",)

    def __init__(self, key: str):
        self.key = key

    def __call__(self, look: Look, view: View | None) -> Tensor:
        return _DECODERS[self.key](look, view)

    def once(self, look: Look, view: View | None) -> Tensor:
        return getattr(decode := _DECODERS[self.key], "once", decode)(look, view)


def _code(text: str) -> str:
    return hashlib.sha256(f"hidden {text}".encode()).hexdigest()[:24]


def _item(item: Item) -> Item:
    key = lasting(_code(item.key)) if lasts(item.key) else _code(item.key)
    _DECODERS[key] = item.pixels
    return Item(key, _Pixels(key), _code(item.name))


def hidden(split: Split) -> Split:
    """The same images and labels, with keys, names and an order that tell nothing; without domains."""
    whole = replace(split, items=tuple(map(_item, split.items)), domains=None, info={})
    return whole.of(sorted(range(len(whole)), key=lambda i: whole.items[i].name))


def unlabelled(split: Split) -> Unlabelled:
    """The images of a hidden split, without their labels."""
    return Unlabelled(split.items, split.names, split.augment)
