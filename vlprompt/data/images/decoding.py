"""Decode, preprocess and augment images; augmentations are pure functions of a seed."""

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vlprompt.core.images import Augmentation, ImageItem, Preprocessing, persistent_key
from vlprompt.data.images.cache import IMAGE_CACHE
from vlprompt.runtime.file_index import get_content_hash, read_stamp

# the smallest fraction of the image area that a random crop covers
MIN_CROP_AREA = {"crop": 0.08, "crop-flip": 0.08, "crop-flip-half": 0.5, "augmix": 0.08}
AUGMENTATIONS = ("none", *MIN_CROP_AREA, "shift-flip", "randaugment")
MAX_RESIZED_PIXELS = 2**27  # 400 MB as bytes; a narrow strip becomes long when its short side is scaled
SKIP_REMEDY = ", or leave out such files with --skip-broken"  # of commands that have this option
EXIF_TRANSPOSES = {  # orientation in the file's EXIF or XMP -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: Path) -> Image.Image:
    """Decode an image file as RGB, upright as its EXIF orientation says.

    Raises:
        ValueError: naming the file, if it is missing, truncated, too large or not an image.
    """
    try:
        with Image.open(path) as image:
            return convert_to_rgb(image)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{str(path)!r}: expected an image that fits into memory, got too many pixels ({error}). Make it smaller "
            f"or remove it{SKIP_REMEDY}."
        ) from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"{str(path)!r}: expected an image, got no such file. Check the path.") from error
        if os.path.isdir(path):
            raise ValueError(f"{str(path)!r}: expected an image, got a folder. Name the files in it.") from error
        raise ValueError(
            f"{str(path)!r}: expected an image, got a truncated file or another format ({type(error).__name__}: "
            f"{error}). Replace or remove it{SKIP_REMEDY}."
        ) from error


def make_upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says, so that it is what viewers show; EXIF that is broken says nothing."""
    image.load()  # TIFF is turned here, PNG has its EXIF behind the pixels
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever Pillow's parser raises: the pixels are whole
        return image
    transpose = EXIF_TRANSPOSES.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to upright RGB: 16-bit grey is scaled to 8 bits, transparency becomes white."""
    image = make_upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float64)
        max_value = 65535.0 if image.mode != "F" else 1.0 if grey.max(initial=0.0) <= 1.0 else 255.0
        image = Image.fromarray((grey.clip(0, max_value) * (255 / max_value)).round().astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _crop_box(width: int, height: int, min_area: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) like torchvision's RandomResizedCrop, at aspect ratios of 3:4 to 4:3."""
    for _ in range(10):
        area = width * height * (min_area + (1 - min_area) * float(torch.rand(1, generator=generator)))
        ratio = (3 / 4) * (16 / 9) ** float(torch.rand(1, generator=generator))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            return top, int(torch.randint(0, width - w + 1, (1,), generator=generator)), h, w
    side = min(width, height)
    return (height - side) // 2, (width - side) // 2, side, side


class _SeededRandomness(TorchFunctionMode):
    """Draw torch's random numbers from a seeded generator instead of the global one, in this thread only."""

    def __init__(self, seed: int):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_random = getattr(func, "__name__", "") in ("rand", "randint", "_sample_dirichlet")
        return func(*args, **(kwargs or {}), **({"generator": self.generator} if is_random else {}))


def _apply_augmix(image: Any, seed: int) -> Any:
    """AugMix (Hendrycks et al., ICLR 2020, arXiv:1912.02781) at severity 1, seeded."""
    from torchvision.transforms.v2 import AugMix

    with _SeededRandomness(seed):
        return AugMix(severity=1)(image)


def _apply_randaugment(image: Any, seed: int) -> Any:
    """RandAugment (Cubuk et al., NeurIPS 2020, arXiv:1909.13719) with 2 operations of magnitude 10 of 30, seeded."""
    from torchvision.transforms.v2 import RandAugment

    with _SeededRandomness(seed):
        return RandAugment(num_ops=2, magnitude=10)(image)


def _resize_to(image: Image.Image, width: int, height: int, preprocessing: Preprocessing) -> Image.Image:
    if image.size == (width, height):
        return image
    mode = preprocessing.interpolation.removesuffix("-exact")  # Pillow's nearest is exact
    return image.resize((width, height), Image.Resampling[mode.upper()])


def _resize(image: Image.Image, preprocessing: Preprocessing) -> Any:
    """Resize an image before the crop; without antialiasing the result is a tensor (3, H, W) in 0..1."""
    height, width = (math.floor(side / preprocessing.crop) for side in preprocessing.size)
    if preprocessing.resize != "squash" and image.size[0] != image.size[1]:
        short, long = min(height, width), int(min(height, width) * max(image.size) / min(image.size))
        width, height = (short, long) if image.size[0] < image.size[1] else (long, short)
    if width * height > MAX_RESIZED_PIXELS:
        raise ValueError(
            f"image: expected sides of a ratio that can be resized, got {image.size[0]} x {image.size[1]} pixels, "
            f"which would be {width} x {height}. Cut or remove it, or set preprocess.resize=squash."
        )
    if preprocessing.antialias:
        return _resize_to(image, width, height, preprocessing)
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as T

    pixels = T.pil_to_tensor(image).float() / 255  # resizing bytes would round once more
    return T.resize(pixels, [height, width], InterpolationMode(preprocessing.interpolation), antialias=False)


def _crop(image: Any, top: int, left: int, height: int, width: int) -> Any:
    """Cut a box out of an image or a tensor (3, H, W); what lies outside of it is black."""
    if isinstance(image, Image.Image):
        return image.crop((left, top, left + width, top + height))
    right, bottom = left + width - image.shape[-1], top + height - image.shape[-2]
    return torch.nn.functional.pad(image, (-left, right, -top, bottom))


def _crop_centre(image: Any, size: tuple[int, int]) -> Any:
    def find_start(side: int, cropped: int) -> int:
        return -((cropped - side) // 2) if cropped > side else round((side - cropped) / 2)

    height, width = _get_size(image)
    return _crop(image, find_start(height, size[0]), find_start(width, size[1]), *size)


def _get_size(image: Any) -> tuple[int, int]:
    """Return (height, width) of an image or a tensor (3, H, W)."""
    width, height = image.size if isinstance(image, Image.Image) else (image.shape[-1], image.shape[-2])
    return height, width


def _flip(image: Any) -> Any:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if isinstance(image, Image.Image) else image.flip(-1)


def intermediate_key(preprocessing: Preprocessing, augmentation: Augmentation | None) -> tuple[object, ...]:
    """Return the cache key of the last deterministic step: () for the decoded image itself, else the resize and crop.

    A random crop is taken from the decoded image, and without antialiasing the resized image is no longer in bytes, so
    that both have the key ().
    """
    augment = "none" if augmentation is None else augmentation.kind
    if augment not in ("none", "shift-flip") or not preprocessing.antialias:
        return ()
    return augment, preprocessing.size, preprocessing.interpolation, preprocessing.resize, preprocessing.crop


def compute_intermediate(
    image: Image.Image, preprocessing: Preprocessing, augmentation: Augmentation | None
) -> Image.Image:
    """Run the deterministic steps that `intermediate_key` names."""
    if not (key := intermediate_key(preprocessing, augmentation)):
        return image
    resized = _resize(image, preprocessing)
    return resized if key[0] == "shift-flip" else _crop_centre(resized, preprocessing.size)


def finish_pixels(image: Any, preprocessing: Preprocessing, augmentation: Augmentation | None) -> Tensor:
    """Apply the random steps and normalise.

    Args:
        image: the result of `compute_intermediate`, or its bytes (h, w, 3) if the augmentation is "none".
        preprocessing: the size, crop and normalisation.
        augmentation: the seeded augmentation, None for none.

    Returns:
        (3, h, w), normalised.
    """
    if augmentation is not None and augmentation.kind == "shift-flip":
        generator = torch.Generator().manual_seed(augmentation.seed)
        image = image if preprocessing.antialias else _resize(image, preprocessing)
        sides = zip(_get_size(image), preprocessing.size, strict=True)
        margins = [max(0, side - cropped) for side, cropped in sides]
        top, left = (int(torch.randint(0, n + 1, (1,), generator=generator)) for n in margins)
        image = _crop(image, top, left, *preprocessing.size)
        if float(torch.rand(1, generator=generator)) < 0.5:
            image = _flip(image)
    elif augmentation is not None and augmentation.kind == "randaugment":
        image = _resize_to(image, preprocessing.size[1], preprocessing.size[0], preprocessing)
        image = _apply_randaugment(image, augmentation.seed)
    elif augmentation is not None and augmentation.kind != "none":
        generator = torch.Generator().manual_seed(augmentation.seed)
        width, height = image.size
        box = _crop_box(width, height, MIN_CROP_AREA[augmentation.kind], generator)
        image = _resize_to(_crop(image, *box), preprocessing.size[1], preprocessing.size[0], preprocessing)
        if augmentation.kind != "crop" and float(torch.rand(1, generator=generator)) < 0.5:
            image = _flip(image)
        if augmentation.kind == "augmix":
            image = _apply_augmix(image, augmentation.seed)
    elif not preprocessing.antialias:
        image = _crop_centre(_resize(image, preprocessing), preprocessing.size)
    if not isinstance(image, Tensor):
        array = image if isinstance(image, np.ndarray) else np.array(image)  # a copy: Pillow's memory is read-only
        pixels = torch.from_numpy(array).permute(2, 0, 1)
        image = torch.empty(pixels.shape).copy_(pixels).div_(255)
    mean, std = torch.tensor(preprocessing.mean)[:, None, None], torch.tensor(preprocessing.std)[:, None, None]
    return (image - mean).div_(std)


def preprocess_image(
    image: Image.Image, preprocessing: Preprocessing, augmentation: Augmentation | None = None
) -> Tensor:
    """Preprocess and augment an image.

    Args:
        image: an RGB image.
        preprocessing: the size, crop and normalisation.
        augmentation: None for resize and centre crop; "shift-flip" resizes and crops at a random position within the
            margin that the preprocessing's crop leaves (VPT on FGVC); "randaugment" squashes the image, and neither
            crops nor flips it; the others resize a random crop. All others but "crop" flip horizontally with
            probability one half.

    Returns:
        (3, h, w), normalised.
    """
    return finish_pixels(compute_intermediate(image, preprocessing, augmentation), preprocessing, augmentation)


@dataclass(frozen=True, slots=True)
class _ImageDecoder:
    """Decode one image, and cache its deterministic preprocessing."""

    key: str
    opener: Callable[[], Image.Image]
    content: Callable[[], str] | None = None
    file: str | None = None

    def __call__(self, preprocessing: Preprocessing, augmentation: Augmentation | None) -> Tensor:
        return finish_pixels(self._load_intermediate(preprocessing, augmentation, True), preprocessing, augmentation)

    def decode_once(self, preprocessing: Preprocessing, augmentation: Augmentation | None) -> Tensor:
        """Decode without caching unless there is an augmentation, whose next draw reuses the intermediate image."""
        return finish_pixels(
            self._load_intermediate(preprocessing, augmentation, augmentation is not None), preprocessing, augmentation
        )

    def _load_intermediate(self, preprocessing: Preprocessing, augmentation: Augmentation | None, cache: bool) -> Any:
        key = intermediate_key(preprocessing, augmentation)
        if (pixels := IMAGE_CACHE.get((self.key, *key))) is not None:
            return pixels if "none" in key else Image.fromarray(pixels)  # only the normalisation is left to do
        decoded = IMAGE_CACHE.get((self.key,)) if key else None
        image = self.opener() if decoded is None else Image.fromarray(decoded)
        try:
            intermediate = compute_intermediate(image, preprocessing, augmentation)
        except ValueError as error:
            raise ValueError(f"{self.file or self.key}: {error}") from error
        if cache:
            IMAGE_CACHE.add((self.key, *key), intermediate)
        return intermediate


def hash_array(array: np.ndarray) -> str:
    """Return the content hash of an image in memory."""
    return hashlib.blake2b(repr(array.shape).encode() + array.tobytes(), digest_size=16).hexdigest()


def build_image_item(
    key: str, opener: Callable[[], Image.Image], name: str = "", content: Callable[[], str] | None = None
) -> ImageItem:
    """Return the item of an image that is in no file of its own.

    Args:
        key: the cache key; must change when the image does.
        opener: decodes the image; may be called more than once.
        name: the path inside the dataset.
        content: computes a hash of the image's content; None where the key, or else the name, stands for it.
    """
    return ImageItem(key, _ImageDecoder(key, opener, content), name)


def build_memory_item(image: Image.Image, name: str = "") -> ImageItem:
    """Return the item of an image in memory, keyed by its content.

    Args:
        image: upright RGB, as `convert_to_rgb` returns it; the item holds a copy of its pixels.
        name: its place in the dataset.
    """
    array = np.array(image)
    content = hash_array(array)
    decoder = _ImageDecoder(f"memory|{content}", partial(Image.fromarray, array), partial(str, content))
    return ImageItem(f"memory|{content}", decoder, name)


def build_file_item(path: Path, name: str = "") -> ImageItem:
    """Return the item of an image file, keyed by path, size, times and inode.

    The modification time can be copied from another file, but the change time and the inode can't.

    Args:
        path: the file.
        name: its path inside the dataset.
    """
    key = persistent_key(path.absolute(), *read_stamp(path))
    file = str(path.absolute())
    decoder = _ImageDecoder(key, partial(_open_image_path, str(path)), partial(get_content_hash, file), file)
    return ImageItem(key, decoder, name)


def _open_image_path(path: str) -> Image.Image:
    return open_image(Path(path))
