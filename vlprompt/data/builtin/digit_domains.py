"""The handwritten digits in six domains: five make one image each of every handwritten one, the sixth is rendered.

Pure functions: which domain an image is in, and how it is changed there, is always the same.
"""

import random
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from vlprompt.data.builtin import digits

SIDE = 32  # pixels of an image that was turned or blurred; the digits have 8
CHANGED = ("handwritten", "negative", "rotated", "noisy", "blurred")
DOMAINS = (*CHANGED, "rendered")


@cache
def places() -> dict[str, list[tuple[str, int]]]:
    """For each part of the digits (domain, index), class by class; each index stands in one domain.

    A class is shuffled and dealt to the domains in turn; which one begins moves on with each class, so that no domain
    gets all the rest.
    """
    labels, parts = digits.arrays()[1], dict[str, list[tuple[str, int]]]()
    for part, indices in digits.halves().items():
        parts[part] = []
        for label in range(10):
            of_class = [i for i in indices if labels[i] == label]
            random.Random(f"domains {part} {label}").shuffle(of_class)
            begin = len(parts[part])
            parts[part] += [(CHANGED[(begin + n) % len(CHANGED)], i) for n, i in enumerate(of_class)]
    return parts


def picture(domain: str, index: int) -> Image.Image:
    """A handwritten digit as it looks in one of the domains CHANGED."""
    grey = digits.arrays()[0][index]
    if domain == "handwritten":
        return digits.picture(index)
    if domain == "negative":
        return Image.fromarray(255 - grey).convert("RGB")
    if domain == "noisy":
        noise = np.random.default_rng(index).normal(0, 50, grey.shape)  # of 255
        return Image.fromarray((grey + noise).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    large = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if domain == "rotated":
        return large.rotate(30, Image.Resampling.BICUBIC).convert("RGB")  # counterclockwise, the corners black
    return large.filter(ImageFilter.GaussianBlur(3)).convert("RGB")  # three quarters of a pixel of the digit
