"""Hide labels: anonymise the keys, names and order of images, so that none of them reveals a class."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from vlprompt.core.batch import Item, Split, Unlabelled
from vlprompt.core.images import Augmentation, ImageItem, Preprocessing, is_persistent, persistent_key

Decoder = Callable[[Preprocessing, Augmentation | None], Tensor]
_DECODERS: dict[str, Decoder] = {}  # a module-level table, so that no item refers to its file
_NAMES: dict[str, str] = {}  # hashed name -> name, for what the evaluator writes down


class _HiddenDecoder:
    """Decode an image that is identified by a hash only."""

    __slots__ = ("key",)

    def __init__(self, key: str):
        self.key = key

    def __call__(self, preprocessing: Preprocessing, augmentation: Augmentation | None) -> Tensor:
        return _DECODERS[self.key](preprocessing, augmentation)

    def decode_once(self, preprocessing: Preprocessing, augmentation: Augmentation | None) -> Tensor:
        decode = _DECODERS[self.key]
        return getattr(decode, "decode_once", decode)(preprocessing, augmentation)

    @property
    def content(self) -> Callable[[], str] | None:
        """Computes the hash of the image's content, which does not reveal its file."""
        return getattr(_DECODERS[self.key], "content", None)


def _hash_text(text: str) -> str:
    return hashlib.sha256(f"hidden {text}".encode()).hexdigest()[:24]


def _anonymize_item(item: ImageItem) -> ImageItem:
    key = persistent_key(_hash_text(item.key)) if is_persistent(item.key) else _hash_text(item.key)
    name = _hash_text(item.name)
    _DECODERS[key], _NAMES[name] = item.pixels, item.name
    return ImageItem(key, _HiddenDecoder(key), name)


def reveal_name(item: Item) -> str:
    """Return the name that an item has in its dataset, also where its labels are hidden; for the evaluator only."""
    name: str = item.name
    return _NAMES.get(name, name)


def anonymize_items(split: Split) -> Split:
    """Return the same images and labels without domains, with hashed keys and names, in the order of the hashes."""
    anonymous = replace(split, items=tuple(map(_anonymize_item, split.items)), domains=None, info={})
    return anonymous.select(sorted(range(len(anonymous)), key=lambda i: anonymous.items[i].name))


def drop_labels(split: Split) -> Unlabelled:
    """Return the images of an anonymised split without their labels."""
    return Unlabelled(split.items, split.names, split.augment)
