"""Pictures to pixels: files and arrays as items, a tower's look, augmented views as pure functions of a number."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vlprompt.core.images import Item, Look, View, lasting
from vlprompt.data.images.cache import HELD

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
LEAST = {"crop": 0.08, "crop-flip": 0.08, "crop-flip-half": 0.5, "augmix": 0.08}  # of the area that a crop keeps
AUGMENTS = ("none", *LEAST, "shift-flip")


def open_picture(path: Path) -> Image.Image:
    """The whole picture in RGB; ValueError that names the file when it is truncated, too large or no image."""
    try:
        with Image.open(path) as picture:
            return in_rgb(picture)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{str(path)!r} has so many pixels that opening it could fill the memory ({error}); make it smaller or "
            "remove it, or go on without such files by --skip-broken"
        ) from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"there is no image {str(path)!r}") from error
        if path.is_dir():
            raise ValueError(f"{str(path)!r} is a folder, not an image; name the files in it") from error
        raise ValueError(
            f"{str(path)!r} is truncated or not an image ({type(error).__name__}: {error}); replace or remove it, "
            "or go on without such files by --skip-broken"
        ) from error


def in_rgb(picture: Image.Image) -> Image.Image:
    """Any picture in RGB: 16 bits of grey become 8, transparent becomes white, the rest is as Pillow does it."""
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = np.asarray(picture, dtype=np.float64)
        most = 65535.0 if picture.mode != "F" else 1.0 if grey.max(initial=0.0) <= 1.0 else 255.0
        picture = Image.fromarray((grey.clip(0, most) * (255 / most)).round().astype(np.uint8))
    if picture.has_transparency_data:
        shown = picture.convert("RGBA")
        if shown.getchannel("A").getextrema() != (255, 255):
            return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    return picture.convert("RGB")


def files_under(folder: Path) -> list[Path]:
    """The image files in a folder and below, sorted."""
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())


def _crop_box(width: int, height: int, least: float, view: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width of a random crop of `least` to 1 of the area and 3:4 to 4:3.

    As torchvision's RandomResizedCrop draws.
    """
    for _ in range(10):
        area = width * height * (least + (1 - least) * float(torch.rand(1, generator=view)))
        ratio = (3 / 4) * (16 / 9) ** float(torch.rand(1, generator=view))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=view))
            return top, int(torch.randint(0, width - w + 1, (1,), generator=view)), h, w
    side = min(width, height)
    return (height - side) // 2, (width - side) // 2, side, side


class _Stream(TorchFunctionMode):
    """Random numbers that torch would draw from the stream of all come from one of their own; in this thread only."""

    def __init__(self, seed: int):
        super().__init__()
        self.own = torch.Generator().manual_seed(seed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = getattr(func, "__name__", "") in ("rand", "randint", "_sample_dirichlet")
        return func(*args, **(kwargs or {}), **({"generator": self.own} if drawn else {}))


def _augmix(picture: Any, seed: int) -> Any:
    """AugMix (Hendrycks et al., ICLR 2020, arXiv:1912.02781) at severity 1; torchvision draws from torch's stream."""
    from torchvision.transforms.v2 import AugMix

    with _Stream(seed):
        return AugMix(severity=1)(picture)


def _resized(picture: Any, look: Look) -> Any:
    """As large as the look says before it is cut out; a tensor (3, H, W) of 0..1 where it samples at points."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as T

    whole = [math.floor(side / look.crop) for side in look.size]
    square = look.resize == "squash" or picture.size[0] == picture.size[1]
    shown = picture if look.antialias else T.pil_to_tensor(picture).float() / 255  # bytes would be rounded once more
    mode = InterpolationMode(look.interpolation)
    return T.resize(shown, whole if square else [min(whole)], mode, antialias=look.antialias)


def form(look: Look, view: View | None) -> tuple[object, ...]:
    """What all sights of one kind begin with: the picture itself, the picture resized, or what is cut out of that.

    A crop is taken from the picture itself, and one that is sampled at points has no bytes any more.
    """
    augment = "none" if view is None else view.augment
    if augment not in ("none", "shift-flip") or not look.antialias:
        return ()
    return augment, look.size, look.interpolation, look.resize, look.crop


def formed(picture: Image.Image, look: Look, view: View | None) -> Image.Image:
    """A picture in that form."""
    from torchvision.transforms import functional as T

    if not (kind := form(look, view)):
        return picture
    shown: Any = _resized(picture, look)
    if kind[0] != "shift-flip":
        shown = T.center_crop(shown, list(look.size))
    return shown


def finished(shown: Any, look: Look, view: View | None) -> Tensor:
    """(3, h, w), normalised, from a picture in the form of its sight (what is cut out may be its bytes, (h, w, 3))."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as T

    mode = InterpolationMode(look.interpolation)
    if view is not None and view.augment == "shift-flip":
        random = torch.Generator().manual_seed(view.seed)
        shown = shown if look.antialias else _resized(shown, look)
        over = [max(0, have - wanted) for have, wanted in zip(T.get_dimensions(shown)[1:], look.size, strict=True)]
        top, left = (int(torch.randint(0, n + 1, (1,), generator=random)) for n in over)
        shown = T.crop(shown, top, left, *look.size)
        if float(torch.rand(1, generator=random)) < 0.5:
            shown = T.hflip(shown)
    elif view is not None and view.augment != "none":
        random = torch.Generator().manual_seed(view.seed)
        width, height = shown.size
        shown = T.resized_crop(shown, *_crop_box(width, height, LEAST[view.augment], random), list(look.size), mode)
        if view.augment != "crop" and float(torch.rand(1, generator=random)) < 0.5:
            shown = T.hflip(shown)
        if view.augment == "augmix":
            shown = _augmix(shown, view.seed)
    elif not look.antialias:
        shown = T.center_crop(_resized(shown, look), list(look.size))
    if not isinstance(shown, Tensor):
        bytes_ = torch.from_numpy(shown).permute(2, 0, 1) if isinstance(shown, np.ndarray) else T.pil_to_tensor(shown)
        shown = torch.empty(bytes_.shape).copy_(bytes_).div_(255)
    return (shown - torch.tensor(look.mean)[:, None, None]).div_(torch.tensor(look.std)[:, None, None])


def pixels(picture: Image.Image, look: Look, view: View | None = None) -> Tensor:
    """(3, h, w), normalised.

    Without a view: resized and cut out of the middle. With one, perhaps mirrored: for "shift-flip" resized and cut out
    at a random place (VPT on FGVC; it moves by what the look's crop leaves), otherwise a random crop that is resized.
    """
    return finished(formed(picture, look, view), look, view)


@dataclass(frozen=True, slots=True)
class _Sights:
    """Decodes one picture, and keeps of it what its next sight of the same kind begins with."""

    key: str
    open_it: Callable[[], Image.Image]

    def __call__(self, look: Look, view: View | None) -> Tensor:
        return finished(self._formed(look, view, True), look, view)

    def once(self, look: Look, view: View | None) -> Tensor:
        """A view may come again as another one; a look without a view is not kept."""
        return finished(self._formed(look, view, view is not None), look, view)

    def _formed(self, look: Look, view: View | None, keep: bool) -> Any:
        kind = form(look, view)
        if (found := HELD.get((self.key, *kind))) is not None:
            return found if "none" in kind else Image.fromarray(found)  # bytes are all that is left to be normalised
        whole = HELD.get((self.key,)) if kind else None
        found = formed(self.open_it() if whole is None else Image.fromarray(whole), look, view)
        if keep:
            HELD.keep((self.key, *kind), found)
        return found


def picture_item(key: str, open_it: Callable[[], Image.Image], name: str = "") -> Item:
    """An item of a picture that can be opened again; `key` must change when the picture does."""
    return Item(key, _Sights(key, open_it), name)


def file_item(path: Path, name: str = "") -> Item:
    """An item of a file: its key holds the path, the size and the time of the last change.

    name: its path inside its dataset.
    """
    stat = path.stat()
    return picture_item(lasting(path.absolute(), stat.st_size, stat.st_mtime_ns), partial(_open, str(path)), name)


def _open(path: str) -> Image.Image:
    return open_picture(Path(path))
