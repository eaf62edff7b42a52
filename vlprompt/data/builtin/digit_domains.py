"""The digits in six domains: five partition and transform the handwritten digits, the sixth is rendered.

The assignment of images to domains and the transforms are deterministic.
"""

import random
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from vlprompt.data.builtin import digits

IMAGE_SIZE = 32  # pixels of a rotated or blurred image; the digits have 8
HANDWRITTEN_DOMAINS = ("handwritten", "negative", "rotated", "noisy", "blurred")
DOMAINS = (*HANDWRITTEN_DOMAINS, "rendered")


@cache
def assign_domains() -> dict[str, list[tuple[str, int]]]:
    """Return (domain, index) of each split's digits, class by class; each index is in one domain.

    Each class is shuffled and dealt round-robin. The first domain rotates from class to class, so that remainders are
    spread evenly.
    """
    labels, parts = digits.load_digit_arrays()[1], dict[str, list[tuple[str, int]]]()
    for part, indices in digits.split_indices().items():
        parts[part] = []
        for label in range(10):
            class_indices = [i for i in indices if labels[i] == label]
            random.Random(f"domains {part} {label}").shuffle(class_indices)
            offset = len(parts[part])
            parts[part] += [
                (HANDWRITTEN_DOMAINS[(offset + n) % len(HANDWRITTEN_DOMAINS)], i) for n, i in enumerate(class_indices)
            ]
    return parts


def open_domain_digit(domain: str, index: int) -> Image.Image:
    """Open a handwritten digit with the transform of one of HANDWRITTEN_DOMAINS."""
    grey = digits.load_digit_arrays()[0][index]
    if domain == "handwritten":
        return digits.open_digit(index)
    if domain == "negative":
        return Image.fromarray(255 - grey).convert("RGB")
    if domain == "noisy":
        noise = np.random.default_rng(index).normal(0, 50, grey.shape)  # of 255
        return Image.fromarray((grey + noise).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    large = Image.fromarray(grey).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    if domain == "rotated":
        return large.rotate(30, Image.Resampling.BICUBIC).convert("RGB")  # counterclockwise, the corners black
    return large.filter(ImageFilter.GaussianBlur(3)).convert("RGB")  # three quarters of a pixel of the digit
