"""Read images that are packed in one file, one by one: arrays of NumPy archives, and members of tar shards.

Shards are those of webdataset: members KEY.EXTENSION, those of one key in a row.
"""

import io
import math
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image

from vlprompt.data.images.decoding import convert_to_rgb
from vlprompt.data.images.files import IMAGE_SUFFIXES, is_hidden, is_image_name
from vlprompt.experiments.predict.prediction_input import PredictionInput, build_broken_input

IMAGES_NAME = "images.npy"
MAX_MEMBER_BYTES = 2**29
MAX_NAMED = 10  # of an archive's arrays, in an error
TAR_BLOCK = 512  # bytes; a member fills them
SKIPPED_BYTES = 2**20  # at a time


@dataclass(frozen=True)
class _Header:
    """The shape of an array and where it lies in its archive."""

    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def image_bytes(self) -> int:
        """The bytes of one image."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def iter_arrays(path: str, notify: Callable[[str], None]) -> Iterator[PredictionInput]:
    """Yield the images of the array `images` of an .npz, or of its only array.

    Bytes are taken as they are; floats from 0 to 1 or from 0 to 255, which `notify` says, else the file is a broken
    input.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            header = _read_header(archive)
            scale = _find_scale(archive, header)
            if scale != 1 or header.dtype.kind == "f":
                notify(f"{path}: floats from 0 to {1 if scale == 255 else 255} are taken as black to white")
            with archive.open(header.member) as file:
                _read_array_header(file)
                for index in range(header.shape[0]):
                    array = _read_image(file, header)
                    yield PredictionInput(f"{path}[{index}]", partial(_convert_array, array, scale))
    except Exception as error:  # zipfile, zlib and NumPy each have their own for damaged files
        yield build_broken_input(path, f"{path!r}: expected a NumPy archive of images, got an error ({error}).")


def _read_header(archive: zipfile.ZipFile) -> _Header:
    members = archive.namelist()
    if not members:
        raise ValueError("expected an array 'images', got no array")
    member = IMAGES_NAME if IMAGES_NAME in members else members[0]
    if member != IMAGES_NAME and len(members) > 1:
        raise ValueError(f"expected an array 'images' or only one array, got {', '.join(members[:MAX_NAMED])}")
    with archive.open(member) as file:
        shape, is_fortran, dtype = _read_array_header(file)
    is_image_shape = len(shape) in (3, 4) and min(shape[1:]) > 0 and shape[0] >= 0 and shape[3:] in ((), (1,), (3,))
    if len(shape) == 3 and shape[2] in (3, 4):
        raise ValueError(f"expected images (N, H, W) or (N, H, W, 3), got {shape}, which may be one image (H, W, 3)")
    if not is_image_shape or is_fortran or not (dtype == np.uint8 or dtype.kind == "f"):
        order = " in Fortran's order" if is_fortran else ""
        raise ValueError(
            f"expected uint8 or float images (N, H, W) or (N, H, W, 3) in C's order, got {dtype} {shape}{order}"
        )
    header = _Header(member, shape, dtype)
    if header.image_bytes > MAX_MEMBER_BYTES:
        raise ValueError(f"expected images of at most {MAX_MEMBER_BYTES} bytes, got {header.image_bytes}")
    return header


def _read_array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether it is in Fortran's order, and type; the file is then at the first value."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _read_image(file: IO[bytes], header: _Header) -> np.ndarray:
    content = file.read(header.image_bytes)
    if len(content) < header.image_bytes:
        raise ValueError("expected as many values as its header says, got fewer")
    return np.frombuffer(content, header.dtype).reshape(header.shape[1:])


def _find_scale(archive: zipfile.ZipFile, header: _Header) -> int:
    """Return what brings the values to 0..255; floats are read once for their range."""
    if header.dtype == np.uint8:
        return 1
    low, high = np.inf, -np.inf
    with archive.open(header.member) as file:
        _read_array_header(file)
        for _ in range(header.shape[0]):
            array = _read_image(file, header)
            finite = array[np.isfinite(array)]
            low, high = min(low, finite.min(initial=np.inf)), max(high, finite.max(initial=-np.inf))
    if low < 0 or high > 255:
        raise ValueError(f"expected floats from 0 to 1 or from 0 to 255, got {low:g} to {high:g}")
    return 255 if high <= 1 else 1


def _convert_array(array: np.ndarray, scale: int) -> Image.Image:
    if array.dtype != np.uint8:
        if not np.isfinite(array).all():
            raise ValueError("image: expected numbers, got NaN or infinity. Remove the image, or repair its array.")
        array = (array * scale).round().astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array).convert("RGB")


def iter_shard(path: str) -> Iterator[PredictionInput]:
    """Yield the first image of each key of a shard, in order.

    A key without an image is a broken input, and so is a shard that ends too early or is no tar.
    """
    key, has_image, name = None, True, ""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in _iter_members(archive):
                base, _, extension = PurePosixPath(member.name).name.partition(".")
                member_key = str(PurePosixPath(member.name).with_name(base))
                if member.islnk() or member.issym():
                    yield _build_link(path, member)
                    continue
                if member_key != key:
                    if not has_image:
                        yield _build_without_image(path, name)
                    key, has_image, name = member_key, False, member.name
                if not has_image and f".{extension.lower()}" in IMAGE_SUFFIXES:
                    has_image = True
                    yield _build_member(path, member, archive)
            if not has_image:
                yield _build_without_image(path, name)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        yield build_broken_input(path, f"{path!r}: expected a whole tar file, got an error ({error}).")


def _iter_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield files, and links that are named as images, that are not hidden."""
    while (member := archive.next()) is not None:
        vars(archive)["members"].clear()  # else the archive keeps them all
        name = PurePosixPath(member.name).name
        is_link = (member.islnk() or member.issym()) and is_image_name(name)
        if is_link or (member.isfile() and not is_hidden(name)):
            yield member
        _skip_content(archive)


def _skip_content(archive: tarfile.TarFile) -> None:
    """Read up to the next member; ReadError where the file ends before: tarfile would look for it without an end."""
    file: Any = archive.fileobj
    end = vars(archive)["offset"] - TAR_BLOCK  # tarfile itself reads the last block
    while (n_left := end - file.tell()) > 0:
        if not file.read(min(n_left, SKIPPED_BYTES)):
            raise tarfile.ReadError("unexpected end of data")


def _build_member(path: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> PredictionInput:
    name = f"{path}/{member.name}"
    if member.size > MAX_MEMBER_BYTES:
        return build_broken_input(name, f"{name!r}: expected at most {MAX_MEMBER_BYTES} bytes, got {member.size}.")
    file = archive.extractfile(member)
    content = b"" if file is None else file.read()
    if len(content) < member.size:
        raise tarfile.ReadError(f"unexpected end of data in {member.name}")
    return PredictionInput(name, partial(_open_bytes, content, name))


def _build_link(path: str, member: tarfile.TarInfo) -> PredictionInput:
    name = f"{path}/{member.name}"
    return build_broken_input(
        name, f"{name!r}: expected an image, got a link to {member.linkname!r}. Pack the file itself."
    )


def _build_without_image(path: str, name: str) -> PredictionInput:
    place = f"{path}/{name}"
    return build_broken_input(
        place, f"{place!r}: expected an image of this key, got none of {', '.join(IMAGE_SUFFIXES)}."
    )


def _open_bytes(content: bytes, name: str) -> Any:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return convert_to_rgb(image)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name!r}: expected an image that fits into memory, got too many pixels ({error})."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(
            f"{name!r}: expected an image, got a truncated one or another format ({type(error).__name__}: {error})."
        ) from error
