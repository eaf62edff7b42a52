"""Read the images and settings of a request, and decode images from bytes that nobody has checked."""

import base64
import binascii
import io
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from torch import Tensor

from vlprompt.core.images import Augmentation, ImageItem, Preprocessing
from vlprompt.data.images.decoding import compute_intermediate, convert_to_rgb, finish_pixels, preprocess_image
from vlprompt.experiments.server.limits import MAX_LARGEST_IMAGES, Limits, RefusedError

# formats that Pillow decodes by itself; others start programs, or hold scripts
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_FIELDS_BESIDES_CLASSES = 16
DEFAULT_TOP_K = 5
PLAIN_WORDS = {  # of pydantic -> of this server
    "a valid integer": "a whole number",
    "a valid array": "a list",
    "a valid string": "a text",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}
Body = TypeVar("Body", bound=BaseModel)


class UploadedImage(NamedTuple):
    """The bytes of an image, and what the client calls it."""

    name: str
    data: bytes


class PredictSettings(BaseModel):
    """What a client asks of `POST /predict`, beside the images."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str | None, Field(description="The name of a model; may be left out where there is one.")] = None
    classes: Annotated[
        list[str] | None, Field(description="Classes to choose from; default: those the model was trained on.")
    ] = None
    classes_id: Annotated[str | None, Field(description="A list of classes that POST /classes has stored.")] = None
    top_k: Annotated[
        int | None,
        Field(
            ge=1, description=f"How many classes to return for each image: {DEFAULT_TOP_K}, or all of several labels."
        ),
    ] = None
    neighbours: Annotated[int, Field(ge=0, le=20, description="How many nearest training images to return.")] = 0


class PredictBody(PredictSettings):
    """The JSON body of `POST /predict`."""

    images: Annotated[list[str], Field(description="Images in base64, or as data: URLs.")]


def parse_json(schema: type[Body], data: bytes) -> Body:
    """Parse a JSON body; RefusedError (422) with the first thing that is wrong."""
    try:
        return schema.model_validate_json(data)
    except ValidationError as error:
        raise _explain_validation(error, schema) from None


def _explain_validation(error: ValidationError, schema: type[BaseModel]) -> RefusedError:
    first = error.errors(include_url=False)[0]
    place, kind, value = ".".join(map(str, first["loc"])) or "body", first["type"], first["input"]
    message = first["msg"]
    if kind == "missing":
        return RefusedError(422, f"{place}: expected a value, got none. Send one.")
    if kind == "extra_forbidden":
        return RefusedError(422, f"{place[:80]}: expected one of {', '.join(schema.model_fields)}, got another field.")
    if kind == "json_invalid":
        return RefusedError(422, f"body: expected JSON, got a broken text ({message.removeprefix('Invalid JSON: ')}).")
    expected = message.removeprefix("Input should be ").partition(", unable")[0]
    for theirs, plain in PLAIN_WORDS.items():
        expected = expected.replace(theirs, plain)
    short = repr(value)[:80] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return RefusedError(422, f"{place}: expected {expected}, got {short}.")


def parse_json_images(data: bytes, limits: Limits) -> tuple[list[UploadedImage], PredictSettings]:
    """Parse the JSON body of `POST /predict`; RefusedError for one that is no such body, or has too many images."""
    body = parse_json(PredictBody, data)
    require_image_count(len(body.images), limits)
    images = [UploadedImage(f"image {k}", _decode_base64(k, text)) for k, text in enumerate(body.images, 1)]
    return images, body


def _decode_base64(number: int, text: str) -> bytes:
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(
            422, f"images.{number - 1}: expected an image in base64, got other characters. Encode its bytes."
        ) from None


async def parse_multipart_images(
    headers: Headers, stream: AsyncIterator[bytes], limits: Limits
) -> tuple[list[UploadedImage], PredictSettings]:
    """Parse a multipart body: files are images, fields settings, `classes` with commas or once for each class."""
    n_fields = limits.classes + MAX_FIELDS_BESIDES_CLASSES
    parser = MultiPartParser(
        headers,
        stream,  # pyright: ignore[reportArgumentType]  # it only iterates
        max_files=limits.images,
        max_fields=n_fields,
        max_part_size=4 * limits.class_characters + 1024,
    )
    parser.spool_max_size = limits.body_bytes  # in memory: no image of a client is written to a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            require_image_count(limits.images + 1, limits)
        if error.message.startswith("Too many fields"):
            raise _make_class_count_error("more", limits) from None
        cause = error.message.rstrip(".")
        raise RefusedError(
            422, f"body: expected a multipart form, got a broken one ({cause}). Send it by a library."
        ) from None
    except (KeyError, UnicodeError, ValueError) as error:  # no boundary, or a header that is no text
        raise RefusedError(
            422, f"body: expected a multipart form, got a broken one ({type(error).__name__}). Send it by a library."
        ) from None
    images, fields = list[UploadedImage](), dict[str, Any]()
    try:
        for name, value in form.multi_items():
            if not isinstance(value, str):
                images.append(UploadedImage(value.filename or f"image {len(images) + 1}", await value.read()))
            elif name == "classes":
                fields.setdefault(name, []).append(value)
            else:
                fields[name] = value
        if len(fields.get("classes", ())) == 1:  # one class leaves nothing to choose from
            fields["classes"] = fields["classes"][0].split(",")
        return images, PredictSettings.model_validate(fields)
    except ValidationError as error:
        raise _explain_validation(error, PredictSettings) from None
    finally:
        await form.close()


def require_image_count(n: int, limits: Limits) -> None:
    """Raise RefusedError (413) for more images than a request may have, (422) for none."""
    if n > limits.images:
        raise RefusedError(
            413, f"images: expected at most {limits.images} in a request, got more. Send several requests."
        )
    if not n:
        raise RefusedError(422, "images: expected at least one, got none. Send a file, or base64 in a list.")


def require_class_names(names: list[str], limits: Limits) -> list[str]:
    """Return class names without surrounding spaces; RefusedError (422) for empty, equal, long, too few or many."""
    if len(names) > limits.classes:
        raise _make_class_count_error(str(len(names)), limits)
    names = [" ".join(name.split()) for name in names]
    if not names or not all(names):
        raise RefusedError(422, "classes: expected names, got an empty one. Leave it out.")
    if len(names) == 1:
        raise RefusedError(422, f"classes: expected at least 2 names to choose from, got {names[0]!r}. Add another.")
    if longest := next((name for name in names if len(name) > limits.class_characters), None):
        raise RefusedError(
            422,
            f"classes: expected names of at most {limits.class_characters} characters, got one of {len(longest)}. "
            "Shorten it.",
        )
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise RefusedError(422, f"classes: expected each name once, got {double!r} twice. Leave one out.")
    return names


def _make_class_count_error(count: str, limits: Limits) -> RefusedError:
    return RefusedError(422, f"classes: expected at most {limits.classes} names, got {count}. Send fewer.")


def require_pixels(images: Sequence[UploadedImage], limits: Limits) -> None:
    """Read the headers of a request's images, before one is decoded.

    Raises:
        RefusedError: as `read_header` does, and 413 where all together have too many pixels.
    """
    n_pixels, most = 0, MAX_LARGEST_IMAGES * limits.pixels
    for number, image in enumerate(images, 1):
        width, height = read_header(image, number, limits).size
        n_pixels += width * height
        if n_pixels > most:
            raise RefusedError(
                413,
                f"images: expected at most {most / 1e6:g} million pixels in a request, got more. Send several.",
            )


def read_header(image: UploadedImage, number: int, limits: Limits) -> Image.Image:
    """Open an image without decoding its pixels.

    Args:
        image: from a client.
        number: its place in the request, from 1, for the message.
        limits: of its size.

    Raises:
        RefusedError: 415 for another format, 413 for too many pixels, 422 for a broken header.
    """
    place = f"image {number} ({image.name[:80]!r})"
    if not image.data:
        raise RefusedError(422, f"{place}: expected an image, got an empty file. Send its bytes.")
    try:
        Image.init()
        file = Image.open(io.BytesIO(image.data), formats=[name for name in FORMATS if name in Image.OPEN])
        width, height = file.size
    except Image.DecompressionBombError:
        raise _make_pixel_error(place, "more", limits) from None
    except UnidentifiedImageError:
        raise RefusedError(415, f"{place}: expected an image ({', '.join(FORMATS)}), got another format.") from None
    except Exception as error:  # whatever a parser of Pillow raises for a broken header
        raise RefusedError(422, f"{place}: expected an image, got a broken header ({type(error).__name__}).") from None
    if width * height > limits.pixels:
        raise _make_pixel_error(place, f"{width} x {height}", limits)
    return file


def decode_image(image: UploadedImage, number: int, limits: Limits) -> Image.Image:
    """Decode an image as upright RGB; arguments and errors as in `read_header`, and 422 for a truncated file."""
    file = read_header(image, number, limits)
    try:
        return convert_to_rgb(file)
    except Exception as error:
        raise RefusedError(
            422,
            f"image {number} ({image.name[:80]!r}): expected an image, got a truncated or broken {file.format} "
            f"({type(error).__name__}).",
        ) from None


def _make_pixel_error(place: str, size: str, limits: Limits) -> RefusedError:
    millions = limits.pixels / 1e6
    return RefusedError(413, f"{place}: expected at most {millions:g} million pixels, got {size}. Make it smaller.")


@dataclass(frozen=True, slots=True)
class _UploadDecoder:
    """Return the pixels of an upload: those of one preprocessing from its resized image, others from its bytes.

    Args:
        image: from a client.
        limits: of an image.
        preprocessing: of the tower that will see it.
        resized: by this preprocessing; a tensor, normalised, where it resizes without antialiasing.
    """

    image: UploadedImage
    limits: Limits
    preprocessing: Preprocessing
    resized: Image.Image | Tensor

    def __call__(self, preprocessing: Preprocessing, augmentation: Augmentation | None) -> Tensor:
        if preprocessing == self.preprocessing and augmentation is None:
            if isinstance(self.resized, Tensor):
                return self.resized.clone()
            return finish_pixels(self.resized, preprocessing, None)
        return preprocess_image(decode_image(self.image, 1, self.limits), preprocessing, augmentation)


def build_upload_item(image: UploadedImage, number: int, limits: Limits, preprocessing: Preprocessing) -> ImageItem:
    """Return the item of an uploaded image, keyed by its bytes; it holds these and the resized image, no more.

    Args:
        image: from a client.
        number: its place in the request, from 1, for the message.
        limits: of an image.
        preprocessing: of the tower that will see it.

    Raises:
        RefusedError: as `decode_image` does, and 422 for a strip that would be resized to too many pixels.
    """
    decoded = decode_image(image, number, limits)
    try:
        # without antialiasing the intermediate image is the decoded one, of any size
        resize = compute_intermediate if preprocessing.antialias else preprocess_image
        resized = resize(decoded, preprocessing, None)
    except ValueError as error:
        raise RefusedError(422, f"image {number} ({image.name[:80]!r}): {error}") from None
    key = f"upload|{blake2b(image.data, digest_size=16).hexdigest()}"
    return ImageItem(key, _UploadDecoder(image, limits, preprocessing, resized), image.name)
