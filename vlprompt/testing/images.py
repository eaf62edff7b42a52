"""Images for checks: random pixels as values, a lesson of real digits, and small folders of real images."""

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vlprompt.core.images import Images
from vlprompt.core.stage import Lesson
from vlprompt.data.builtin.digits import load_digit_arrays
from vlprompt.data.builtin.glyphs.words import DIGITS
from vlprompt.data.loading import open_data
from vlprompt.data.splits.label_hiding import anonymize_items, drop_labels
from vlprompt.data.splits.sampling import sample_few_shot
from vlprompt.runtime.seeding import make_generator


def wrap_pixels(pixels: Tensor, tag: str = "image") -> Images:
    """Wrap pixels (B, 3, h, w) as images with the keys tag/0, tag/1 ...; an augmentation is the same image, rolled."""
    keys = [f"{tag}/{i}" for i in range(len(pixels))]
    return Images(
        lambda preprocessing, indices: pixels[list(indices)],
        keys,
        lambda kind, index: wrap_pixels(pixels.roll(index + 1, -1), f"{tag}/{kind}{index}"),
    )


def build_digits_lesson() -> Lesson:
    """Return a lesson of two images per digit, with unlabelled images, which only adaptation methods are given."""
    data = open_data("digits")
    target = anonymize_items(sample_few_shot(data.test, None, 2, 1)[0])
    train, val = sample_few_shot(data.train, data.val, 2, 1)
    return Lesson(train, val, drop_labels(target), domains=("ink", "chalk"))


def write_digit_folders(root: Path) -> Path:
    """Write small folders: digits/split/class/image, domains/domain/class/image, and looks/class/image.

    A domain is a look, black on white ("ink") or white on black ("chalk"); the looks are the classes of the last.
    """
    parts = (("train", range(2)), ("val", range(2, 3)), ("test", range(3, 5)))
    for label, word in enumerate(DIGITS):
        for split, indices in parts:
            _write_digits(root / "digits" / split / word, label, indices)
    for label, word in enumerate(DIGITS[:2]):
        for domain in ("ink", "chalk"):
            _write_digits(root / "domains" / domain / word, label, range(6), domain)
            _write_digits(root / "looks" / domain, label, range(10 * label, 10 * label + 6), domain)
    return root


def _write_digits(folder: Path, label: int, indices: Iterable[int], domain: str = "ink") -> None:
    """Write digits of one label, black on white ("ink") or others, white on black ("chalk")."""
    arrays, labels = load_digit_arrays()
    folder.mkdir(parents=True, exist_ok=True)
    for i in indices:
        array = arrays[labels == label][i + 6 * (domain == "chalk")]
        Image.fromarray(array if domain == "chalk" else 255 - array).save(folder / f"{i}.png")


def write_label_table(root: Path) -> Path:
    """Write a table of 36 digits, each of which has two of three labels, or none."""
    classes, rows = DIGITS[:3], list[str]()
    for label in range(3):
        _write_digits(root / "images" / DIGITS[label], label, range(12))
        for i in range(12):
            part = "train" if i < 5 else "val" if i < 7 else "test"
            present = (0, 0, 0) if i % 5 == 4 else (int(k in (label, (label + 1) % 3)) for k in range(3))
            rows.append(",".join([f"images/{DIGITS[label]}/{i}.png", part, *map(str, present)]))
    path = root / "labels.csv"
    path.write_text("\n".join([",".join(["path", "split", *classes]), *rows]) + "\n")
    return path


def draw_pixels(n: int, size: tuple[int, int], seed: str) -> Tensor:
    """Draw pixels (n, 3, h, w), the same for the same seed."""
    return torch.randn(n, 3, *size, generator=make_generator(seed))
