"""Images as values: preprocessing, augmentations, items that can be decoded, and batches of them."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from vlprompt.runtime import threads
from vlprompt.runtime.seeding import derive_seed

PERSISTENT_PREFIX = "lasting:"  # begins keys that mean the same image in any process, so that features outlive one


def persistent_key(*parts: object) -> str:
    """Return a key that means the same image in any process."""
    return PERSISTENT_PREFIX + "|".join(map(str, parts))


def is_persistent(key: str) -> bool:
    return key.startswith(PERSISTENT_PREFIX)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the pixels that a tower expects.

    Args:
        size: (h, w) of the pixels.
        mean: per channel.
        std: per channel.
        interpolation: "bicubic" or "bilinear".
        resize: "shortest" (then the centre is cropped) or "squash".
        crop: fraction of the resized side that is cropped (224 of 256 is 0.875).
        antialias: False samples the image at points.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"
    resize: str = "shortest"
    crop: float = 1.0
    antialias: bool = True


@dataclass(frozen=True)
class Augmentation:
    """One augmentation of an image: its kind, and the seed of all its randomness."""

    kind: str
    seed: int


DecodeFn: TypeAlias = Callable[[Preprocessing, Augmentation | None], Tensor]  # -> (3, h, w)


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An image that can be decoded.

    Args:
        key: identifies the image; in all processes if `persistent_key` made it, else in this one only.
        pixels: decodes it to (3, h, w).
        name: its place in the dataset, the same on every machine; it goes into the hash of a split and the seed of an
            augmentation. By default the key.
    """

    key: str
    pixels: DecodeFn
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.key.removeprefix(PERSISTENT_PREFIX))

    def decode_once(self, preprocessing: Preprocessing, augmentation: Augmentation | None) -> Tensor:
        """Return the same pixels without caching what only this augmentation needs."""
        decode: DecodeFn = getattr(self.pixels, "decode_once", self.pixels)
        return decode(preprocessing, augmentation)

    @property
    def file(self) -> str | None:
        """The path of the file that the image is decoded from, if there is one and labels are not hidden."""
        return getattr(self.pixels, "file", None)

    def content_hash(self) -> str:
        """Return a hash of the image's content; where its decoder has none, what identifies it in all processes."""
        compute: Callable[[], str] | None = getattr(self.pixels, "content", None)
        return (self.key if is_persistent(self.key) else self.name) if compute is None else compute()


class NotAugmentableError(ValueError):
    """An augmentation was wanted of images that are pixels alone."""


class Images:
    """B images, each preprocessing of which is decoded at most once.

    Args:
        decode_fn: (preprocessing, indices) -> pixels (n, 3, h, w).
        keys: of the images; None for one whose features are never cached.
        augment_fn: (kind, index) -> other augmentations of the same images, for methods that use several.
    """

    def __init__(
        self,
        decode_fn: Callable[[Preprocessing, Sequence[int]], Tensor],
        keys: Sequence[str | None],
        augment_fn: "Callable[[str, int], Images] | None" = None,
    ):
        self.keys, self._decode_fn, self._augment_fn = tuple(keys), decode_fn, augment_fn
        self._decoded: dict[Preprocessing, Tensor] = {}

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_items(self) -> int:
        """B, which is a symbol where pixels are traced."""
        return len(self)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the pixels that are decoded and stored."""
        return sum(pixels.nbytes for pixels in self._decoded.values())

    def pixels(self, preprocessing: Preprocessing) -> Tensor:
        """Return normalised pixels (B, 3, h, w)."""
        if preprocessing not in self._decoded:
            self._decoded[preprocessing] = self.decode(preprocessing, range(len(self)))
        return self._decoded[preprocessing]

    def augment(self, kind: str, index: int) -> "Images":
        """Return the augmentation of each image with this index, always the same one.

        Raises:
            NotAugmentableError: for plain pixels.
        """
        if self._augment_fn is None:
            raise NotAugmentableError(
                f"augmentation {kind!r}: expected images of files or PIL images, got pixels, which can't be augmented. "
                "Give them as files or PIL images."
            )
        return self._augment_fn(kind, index)

    def decode(self, preprocessing: Preprocessing, indices: Sequence[int], single_use: bool = False) -> Tensor:
        """Decode the images at these indices only; single_use: they will not be needed again."""
        if preprocessing in self._decoded:
            return self._decoded[preprocessing][list(indices)]
        return self._decode_fn(preprocessing, indices)

    def prefetch(self, preprocessing: Preprocessing, indices: Sequence[int], single_use: bool = False) -> None:
        """Start decoding these images in other threads, if that has paid; `decode` and `pixels` then wait for them."""

    def slice(self, begin: int, end: int) -> "Images":
        return _ImageSlice(self, begin, end)


class PixelBatch(Images):
    """B images that are one tensor, so that what a method computes of them can be traced; no feature is cached.

    Args:
        tensor: pixels (B, 3, h, w), as the tower that reads them has them normalised.
    """

    def __init__(self, tensor: Tensor):
        super().__init__(lambda _, indices: tensor[list(indices)], ())
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    @property
    def n_items(self) -> int:
        return self.tensor.shape[0]

    def pixels(self, preprocessing: Preprocessing) -> Tensor:
        return self.tensor


class _ImageSlice(Images):
    """Consecutive images of others."""

    def __init__(self, parent: Images, begin: int, end: int):
        super().__init__(
            parent.decode, parent.keys[begin:end], lambda kind, index: parent.augment(kind, index).slice(begin, end)
        )
        self.parent, self.begin = parent, begin

    def decode(self, preprocessing: Preprocessing, indices: Sequence[int], single_use: bool = False) -> Tensor:
        if preprocessing in self._decoded:
            return self._decoded[preprocessing][list(indices)]
        return self.parent.decode(preprocessing, [self.begin + i for i in indices], single_use)

    def prefetch(self, preprocessing: Preprocessing, indices: Sequence[int], single_use: bool = False) -> None:
        self.parent.prefetch(preprocessing, [self.begin + i for i in indices], single_use)


DecodeRequests: TypeAlias = dict[tuple[Preprocessing, bool], list[int]]  # (preprocessing, single_use) -> indices


class LazyImages(Images):
    """Images of items with an augmentation each (None: plain), decoded by worker threads.

    `requests` are those that were worth a thread, to be replayed on the next batch.
    """

    def __init__(self, items: Sequence[ImageItem], augmentations: Sequence[Augmentation | None]):
        pairs = tuple(zip(items, augmentations, strict=True))
        decode_item = partial(_decode_pair, pairs)  # not a method: a reference cycle would keep the pixels alive

        def decode(preprocessing: Preprocessing, indices: Sequence[int]) -> Tensor:
            return torch.stack([decode_item(i, preprocessing, False) for i in indices])

        def augment(kind: str, index: int) -> Images:
            return build_images(items, [_indexed_augmentation(item, kind, index) for item in items])

        keys = [item.key if a is None else f"{item.key}|{a.kind}|{a.seed}" for item, a in pairs]
        super().__init__(decode, keys, augment)
        self._decode_item = decode_item
        self._pending, self.requests = dict[Preprocessing, dict[int, Future[Tensor]]](), DecodeRequests()
        self._is_worth_prefetching = False

    def decode(self, preprocessing: Preprocessing, indices: Sequence[int], single_use: bool = False) -> Tensor:
        if preprocessing in self._decoded:
            return self._decoded[preprocessing][list(indices)]
        pending = self._pending.get(preprocessing, {})
        prefetched = {i: pending.pop(i) for i in indices if i in pending}
        missing = [i for i in indices if i not in prefetched]
        decoded, pays = threads.map_indices(lambda i: self._decode_item(i, preprocessing, single_use), missing)
        self._is_worth_prefetching = self._is_worth_prefetching or pays
        if self._is_worth_prefetching:
            self.requests.setdefault((preprocessing, single_use), []).extend(indices)
        pixels = dict(zip(missing, decoded, strict=True)) | {i: future.result() for i, future in prefetched.items()}
        return torch.stack([pixels[i] for i in indices])

    def prefetch(self, preprocessing: Preprocessing, indices: Sequence[int], single_use: bool = False) -> None:
        pending = self._pending.setdefault(preprocessing, {})
        if not self._is_worth_prefetching or preprocessing in self._decoded:
            return
        for i in indices:
            if i in pending:
                continue
            future = threads.submit(self._decode_item, i, preprocessing, single_use)
            if future is not None:
                pending[i] = future

    def prefetch_like(self, requests: DecodeRequests) -> None:
        """Prefetch the images at the indices that were requested of another batch."""
        self._is_worth_prefetching = self._is_worth_prefetching or bool(requests)
        for (preprocessing, single_use), indices in requests.items():
            self.prefetch(preprocessing, sorted({i for i in indices if i < len(self)}), single_use)

    def cancel_prefetch(self) -> None:
        """Cancel what was submitted and is not running yet."""
        for pending in self._pending.values():
            for future in pending.values():
                future.cancel()
        self._pending.clear()


def _decode_pair(
    pairs: Sequence[tuple[ImageItem, Augmentation | None]], index: int, preprocessing: Preprocessing, single_use: bool
) -> Tensor:
    item, augmentation = pairs[index]
    return (item.decode_once if single_use else item.pixels)(preprocessing, augmentation)


def _indexed_augmentation(item: ImageItem, kind: str, index: int) -> Augmentation:
    return Augmentation(kind, derive_seed("view", index, item.name))


def build_images(items: Sequence[ImageItem], augmentations: Sequence[Augmentation | None]) -> Images:
    """Build images of items with an augmentation each (None: plain)."""
    return LazyImages(items, augmentations)
