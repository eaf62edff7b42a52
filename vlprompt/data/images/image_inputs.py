"""Images as users have them in Python: arrays, tensors, PIL images, paths, datasets; each becomes an item."""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlprompt.core.images import ImageItem
from vlprompt.data.images.decoding import (
    build_file_item,
    build_image_item,
    build_memory_item,
    convert_to_rgb,
    open_image,
)
from vlprompt.data.readers.python_objects import find_content, make_opener, open_column_image, read_labels

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
MIN_MAXIMUM = 128  # of numbers that count as 0..255: a set of images that has none brighter is in another range
DATASET_COUNTER = itertools.count()  # two datasets may look alike, so their images get keys of their own
PixelRange = tuple[float, float]
ImageSequence = Sequence[Any] | np.ndarray
BYTE_RANGE: PixelRange = (0.0, 255.0)


class _PixelRanges(NamedTuple):
    """Black and white in arrays of bytes, and in other arrays."""

    in_bytes: PixelRange
    in_others: PixelRange


class DatasetLabels(NamedTuple):
    """The labels of a dataset, and its class names in the order of the labels where it has them."""

    labels: list[int]
    class_names: list[str] | None


def build_image_items(
    images: Any, pixel_range: PixelRange | None = None, float_range: PixelRange | None = None
) -> tuple[ImageItem, ...]:
    """Build the items of images.

    Args:
        images: an array or tensor of images (N, H, W) or (N, H, W, 1, 3 or 4), also with the channels first; a dataset
            that returns (image, label) by index, or Hugging Face's; or a sequence of images: arrays, PIL images, paths
            and ImageItems.
        pixel_range: the numbers that are black and white in all arrays, bytes included; by default 0 and 255 in bytes.
        float_range: the same of arrays that are not bytes; by default recognised (`find_pixel_range`).

    Raises:
        ValueError: for no image, one image that is in no sequence, and what is no image.
    """
    if is_image_dataset(images):
        return tuple(_iter_dataset_items(images))
    parts = list_images(images)
    if pixel_range is None and float_range is None:
        float_range = find_pixel_range(parts)
    ranges = _PixelRanges(pixel_range or BYTE_RANGE, pixel_range or float_range or BYTE_RANGE)
    items = tuple(_build_item(image, ranges, f"image {k}") for k, image in enumerate(parts, 1))
    if not items:
        raise ValueError("images: expected at least one image, got none. Pass one.")
    return items


def is_image_dataset(images: Any) -> bool:
    """Return whether images are a dataset of torchvision's kind or of Hugging Face's, which may have their labels."""
    if isinstance(images, list | tuple | str | Path | np.ndarray | Image.Image) or _is_tensor(images):
        return False
    if hasattr(images, "features") and hasattr(images, "column_names"):
        return True
    is_indexed = hasattr(images, "__getitem__") and hasattr(images, "__len__") and not hasattr(images, "iloc")
    is_indexed = is_indexed and not isinstance(images, Mapping) and not hasattr(images, "toarray")
    first = images[0] if is_indexed and len(images) else None
    return isinstance(first, tuple) and len(first) == 2


def read_dataset_labels(images: Any) -> DatasetLabels:
    """Return the labels of a dataset; ValueError for a Hugging Face dataset without a column of classes."""
    if not hasattr(images, "column_names"):
        return DatasetLabels(read_labels(images), list(getattr(images, "classes", None) or ()) or None)
    column = _find_column(images, "ClassLabel")
    names = getattr(images.features[column], "names", None)
    return DatasetLabels([int(label) for label in images[column]], names and list(names))


def list_images(images: Any) -> ImageSequence:
    """Return the images of a collection as a sequence.

    Raises:
        ValueError: for a single image, and for an array that has no images.
    """
    if isinstance(images, str | Path | Image.Image | ImageItem):
        raise ValueError(
            f"images: expected a sequence of images, got one {type(images).__name__}. Put it into a list: [image]."
        )
    images = _to_numpy(images) if _is_tensor(images) else images
    images = _read_column(images) if hasattr(images, "iloc") else images
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":
        _require_image_array(images)
    if not isinstance(images, Iterable) or isinstance(images, Mapping | bytes) or hasattr(images, "toarray"):
        raise ValueError(
            f"images: expected arrays, PIL images or paths, got a {type(images).__name__}. Pass a list of them."
        )
    return images if isinstance(images, np.ndarray) else list(images)


def find_pixel_range(images: ImageSequence) -> PixelRange | None:
    """Return which numbers are black and white in arrays that are not bytes: (0, 1) or (0, 255); None without such.

    All images are looked at together: a dark one alone could be of either range.

    Raises:
        ValueError: for numbers that are in neither, or not finite.
    """
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":
        arrays: Iterable[np.ndarray | None] = [images]
    else:
        arrays = map(_as_array, images)
    low, high = np.inf, -np.inf
    for array in arrays:
        if array is None or array.dtype in (np.uint8, bool) or not array.size:
            continue
        _require_numbers(array, "images")
        low, high = min(low, float(array.min())), max(high, float(array.max()))
    if high == -np.inf:
        return None
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    if low >= 0 and MIN_MAXIMUM <= high <= 255:
        return 0.0, 255.0
    raise ValueError(
        f"images: expected numbers of 0..1, or of 0..255 with some above {MIN_MAXIMUM - 1}, got {low:.9g}..{high:.9g}. "
        f"Scale them, or name black and white by pixel_range=({low:.9g}, {high:.9g})."
    )


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def _to_numpy(tensor: Any) -> np.ndarray:
    """Convert a tensor of torch; bfloat16, which NumPy lacks, to float32."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def _read_column(frame: Any) -> np.ndarray:
    """Return a column of pandas, or rows of numbers; ValueError for several columns of other objects."""
    array = frame.to_numpy()
    if array.ndim == 1 or array.dtype.kind not in "OU":
        return array
    if array.shape[1] != 1:
        raise ValueError(
            f"images: expected one column of images, got {array.shape[1]}: {', '.join(map(str, frame.columns))}. Pass "
            "the column: frame[NAME]."
        )
    return array[:, 0]


def _as_array(image: Any) -> np.ndarray | None:
    """Return an image that is an array or tensor; None for another."""
    image = _to_numpy(image) if _is_tensor(image) else image
    return image if isinstance(image, np.ndarray) else None


def _require_numbers(array: np.ndarray, where: str) -> None:
    """Raise ValueError for an array of anything but real, finite numbers."""
    if array.dtype.kind not in "buif":
        raise ValueError(f"{where}: expected numbers, got an array of {array.dtype}. Convert it to uint8.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        kind = "NaN" if np.isnan(array).any() else "infinity"
        raise ValueError(f"{where}: expected finite numbers, got {kind}. Remove or replace such pixels.")


def _require_image_array(images: np.ndarray) -> None:
    """Raise ValueError for an array that is not several images."""
    shape = images.shape
    if images.ndim == 3 and shape[-1] in CHANNELS[1:]:
        raise ValueError(
            f"images: expected several images, got the shape {shape} of one. Write images[None], or images[..., None] "
            "if they are grey."
        )
    if images.ndim not in (3, 4):
        raise ValueError(
            f"images: expected an array (N, H, W) or (N, H, W, 3), got the shape {shape}. Write images[None] for one "
            "grey image, and image_shape=(H, W) for rows of pixels."
        )


def _build_item(image: Any, ranges: _PixelRanges, where: str) -> ImageItem:
    if isinstance(image, ImageItem):
        return image
    if isinstance(image, str | Path):
        if not str(image).strip():
            raise ValueError(f"{where}: expected the path of an image, got an empty one. Leave it out.")
        path = Path(image).expanduser()
        if not path.is_file():
            open_image(path)  # raises with the reason
        return build_file_item(path)
    if isinstance(image, Image.Image):
        return build_memory_item(convert_to_rgb(image))
    if (array := _as_array(image)) is None:
        raise ValueError(
            f"{where}: expected an array, a PIL image or a path, got a {type(image).__name__}. Convert it to one."
        )
    return build_memory_item(_convert_array(array, ranges, where))


def _convert_array(array: np.ndarray, ranges: _PixelRanges, where: str) -> Image.Image:
    """Convert one image (H, W[, 1, 3 or 4]) or (1, 3 or 4, H, W) to upright RGB."""
    if array.ndim == 3 and array.shape[0] in CHANNELS and array.shape[-1] not in CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in CHANNELS):
        raise ValueError(f"{where}: expected an image (H, W) or (H, W, 3), got the shape {array.shape}. Reshape it.")
    if 0 in array.shape:
        raise ValueError(
            f"{where}: expected an image, got none of its pixels, as the shape is {array.shape}. Leave it out."
        )
    _require_numbers(array, where)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        array = _scale_to_bytes(array, ranges.in_others, where)
    elif ranges.in_bytes != BYTE_RANGE:
        array = _scale_to_bytes(array, ranges.in_bytes, where)
    array = np.ascontiguousarray(array.squeeze(-1) if array.ndim == 3 and array.shape[-1] == 1 else array)
    return convert_to_rgb(Image.fromarray(array))


def _scale_to_bytes(array: np.ndarray, pixel_range: PixelRange, where: str) -> np.ndarray:
    low, high = pixel_range
    if float(array.min()) < low or float(array.max()) > high:
        raise ValueError(
            f"{where}: expected numbers of {low:g}..{high:g}, got {float(array.min()):.9g}..{float(array.max()):.9g}. "
            "Scale all images alike, or name black and white by pixel_range=(LOW, HIGH)."
        )
    return ((array.astype(np.float64) - low) * (255 / (high - low))).round().astype(np.uint8)


def _iter_dataset_items(dataset: Any) -> Iterable[ImageItem]:
    key = f"{type(dataset).__name__}|{os.getpid()}|{next(DATASET_COUNTER)}"
    column = _find_column(dataset, "Image") if hasattr(dataset, "column_names") else None
    for index in range(len(dataset)):
        opener = make_opener(dataset, index) if column is None else partial(open_column_image, dataset, column, index)
        yield build_image_item(f"{key}|{index}", opener, str(index), find_content(opener))


def _find_column(dataset: Any, kind: str) -> str:
    """Return the column of a Hugging Face dataset whose feature is of this kind."""
    columns = [name for name, feature in dataset.features.items() if type(feature).__name__ == kind]
    if len(columns) != 1:
        raise ValueError(
            f"images: expected a dataset with one column of {kind}, got the columns {', '.join(dataset.features)}. "
            "Pass the columns themselves: fit(dataset[IMAGE], dataset[LABEL])."
        )
    return columns[0]
