"""Images of every format and mode, cut, of strange sizes, with other contents than their names say."""

import io
import random
import struct
import warnings
import zlib
from pathlib import Path

from fuzz.draw import damage
from fuzz.oracle import Facts, check_counts, check_result, mentions
from fuzz.sandbox import Sandbox, chance

FORMATS = {  # suffix -> (format of Pillow, modes that it writes)
    ".png": ("PNG", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ".jpg": ("JPEG", ("L", "RGB", "CMYK")),
    ".bmp": ("BMP", ("1", "L", "P", "RGB", "RGBA")),
    ".gif": ("GIF", ("1", "L", "P", "RGB", "RGBA")),
    ".webp": ("WEBP", ("RGB", "RGBA", "L")),
    ".tif": ("TIFF", ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")),
    ".ppm": ("PPM", ("1", "L", "RGB", "I", "RGBA")),
}
SIZES = ((8, 8), (8, 8), (1, 1), (2, 1), (1, 400), (400, 1), (3, 300), (33, 17), (64, 64))
CLASSES = ("left", "top")


def draw_pattern(name: str, side: tuple[int, int], mode: str, stream: random.Random):
    """Return an image whose left or top half is bright, in a mode."""
    from PIL import Image

    width, height = side
    grey = Image.new("L", side, 20 + stream.randrange(20))
    half = (max(1, width // 2), height) if name == "left" else (width, max(1, height // 2))
    grey.paste(215 + stream.randrange(20), (0, 0, *half))
    grey.putpixel((width - 1, height - 1), grey.getpixel((width - 1, height - 1)) + stream.randrange(15))
    if mode in ("I;16", "I"):
        return grey.convert("I").point(lambda value: value * 257).convert(mode)
    if mode == "F":
        return grey.convert("F").point(lambda value: value * (1 / 255) + 0)
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(grey.convert("RGB"), *profiles, outputMode="LAB")
    return grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "P") else grey.convert(mode)


def write_pattern(path: Path, name: str, stream: random.Random, size: tuple[int, int], mode: str, form: str) -> None:
    """Write such an image, perhaps with metadata or more frames."""
    image = draw_pattern(name, size, mode, stream)
    options = {}
    if form in ("GIF", "TIFF", "WEBP", "PNG") and "I" not in mode and chance(stream, 0.15):
        options = {"save_all": True, "append_images": [draw_pattern(name, size, mode, stream)]}
    if form == "JPEG":
        options |= {"quality": 95, "progressive": chance(stream, 0.3)}
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, form, **options)


def huge_png(width: int, height: int) -> bytes:
    """Return a small PNG that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def draw_broken(stream: random.Random) -> bytes:
    """Return what is no image."""
    return stream.choice(
        (b"", b"\0", b"<html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"P6\n",
         b"BM", b"II*\0", b"RIFF\0\0\0\0WEBPVP8 ", b"\xff\xd8\xff\xe0", b"P6 0 0 255\n", b"P6 -1 5 255\n",
         huge_png(60000, 60000), huge_png(2**31 - 1, 1), huge_png(0, 0), huge_png(100000, 1), huge_png(12000, 9000),
         b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF", b"version https://git-lfs.github.com/spec/v1\n",
         stream.randbytes(300))
    )  # fmt: skip


def is_readable(path: Path) -> bool:
    """Whether Pillow alone decodes a file, without asking for gigabytes."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                if image.format in ("EPS", None):
                    return False
                image.load()
                image.convert("RGB")
        except Exception:
            return False
    return True


def run_case(stream: random.Random, box: Sandbox) -> None:
    """Put one strange file among plain images; check, run and predict."""
    folder, name = box.work / "photos", stream.choice(CLASSES)
    for one in CLASSES:
        for i in range(6):
            write_pattern(folder / one / f"{i}.png", one, stream, (8, 8), "RGB", "PNG")
    suffix = stream.choice(sorted(FORMATS))
    form, modes = FORMATS[suffix]
    size, mode = stream.choice(SIZES), stream.choice(modes)
    strange = folder / name / f"strange{suffix if chance(stream, 0.8) else '.jpeg'}"
    how = f"{form} {mode} {size}"
    if chance(stream, 0.25):
        strange.write_bytes(draw_broken(stream))
        how = f"{strange.read_bytes()[:20]!r}"
    else:
        write_pattern(strange, name, stream, size, mode, form)
        if chance(stream, 0.4):
            data, what = damage(strange.read_bytes(), stream)
            strange.write_bytes(data)
            how += f", {what}"
    box.commands.append(f"# {strange.relative_to(box.work)}: {how}")
    is_plain = size == (8, 8) and "," not in how and "b'" not in how
    hold(stream, box, strange, name, is_readable(strange), is_plain)


def hold(stream: random.Random, box: Sandbox, strange: Path, name: str, readable: bool, is_plain: bool) -> None:
    """A readable image is counted and predicted; another one is refused and named, or left out and named."""
    skips = chance(stream, 0.3)
    facts = Facts({"all": dict.fromkeys(CLASSES, 6)}, separable=False)
    if readable or not skips:
        facts.splits["all"][name] += 1
    check = box.call("data", "check", "photos", statuses=(0, 1, 2))
    if not readable and check.status == 0:
        box.violate("in silence", f"{strange.name} can't be decoded, and `data check` passes")
    if readable:
        check_counts(box, check, facts)
        if check.status and is_plain:
            box.violate("refused", f"{strange.name} can be decoded: {check.line[:200]}")
    run = box.call("run", "nearest_mean", "photos", "--backbone", "pixels:4", "task.shots=null", "-o", box.out,
                   *["--skip-broken"] * skips)  # fmt: skip
    if readable or skips:
        check_result(box, run, facts)
    if run.status == 0 and not readable and not mentions(run.text, [strange.name]) and not skips:
        box.violate("in silence", f"{strange.name} can't be decoded, and the run ends well")
    if run.status == 0:
        predict(box, strange, name, readable, is_plain)


def predict(box: Sandbox, strange: Path, name: str, readable: bool, is_plain: bool) -> None:
    """Predict the strange image beside a plain one."""
    folders = [path.parent for path in box.out.rglob("result.json")]
    plain = strange.with_name("0.png")
    outcome = box.call("predict", folders[0], plain, strange, "--format", "csv", statuses=(0, 1, 2))
    if not readable and not mentions(outcome.text, [strange.name]):
        box.violate("in silence", f"{strange.name} can't be decoded, and predict does not name it")
    if readable and is_plain and outcome.status == 0:
        lines = [line for line in outcome.output.splitlines() if strange.name in line]
        if not lines or lines[0].partition(f"{strange.name},")[2].partition(",")[0] != name:
            box.violate("wrong number", f"{strange.name} shows {name}, predicted {lines}")
