"""Masks of every glyph, from the fonts that matplotlib ships and from pen strokes."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vlprompt.data.builtin.glyphs.pens import WAYS, write
from vlprompt.data.builtin.glyphs.words import ALIKE, LETTERS, SYMBOLS

SIZE = 48  # pixels of a mask's side; the glyph fills 5/6 of it
FONTS = [
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmtt10",
]
SYMBOL_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "STIXGeneral")
RADII = (0.9, 1.6, 2.4, 3.3)  # of the pen that draws a thinned glyph anew, in mask pixels
PENS = (2.6, 2.0, 3.4, 5.0, 6.8)  # widths of the written digits, for the same five levels


@dataclass(frozen=True)
class Bank:
    """masks: uint8 (M, 5, SIZE, SIZE), level 0 as printed, 1..4 by thickness.

    Kind, case (0 alike, 1 lower, 2 upper) and pen: (M,).
    """

    masks: Tensor
    kind: Tensor
    case: Tensor
    pen: Tensor


def _draw(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    canvas = Image.new("L", (160, 160), 0)
    ImageDraw.Draw(canvas).text((40, 30), character, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        return None
    glyph = canvas.crop(box)
    scale = SIZE * 5 / 6 / max(glyph.size)
    w, h = (max(3, round(side * scale)) for side in glyph.size)
    mask = Image.new("L", (SIZE, SIZE), 0)
    mask.paste(glyph.resize((w, h), Image.Resampling.LANCZOS), ((SIZE - w) // 2, (SIZE - h) // 2))
    return np.asarray(mask)


def thin(shapes: np.ndarray) -> np.ndarray:
    """Skeletons of boolean shapes (M, h, w), by Zhang and Suen's parallel thinning (CACM 1984)."""
    x = np.pad(shapes, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    moves = (
        (1, 0),
        (1, -1),
        (0, -1),
        (-1, -1),
        (-1, 0),
        (-1, 1),
        (0, 1),
        (1, 1),
    )  # neighbours N, NE, E, SE, S, SW, W, NW
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            around = [np.roll(x, move, (1, 2)) for move in moves]
            n, _, e, _, s, _, w, _ = around
            count = sum(a.astype(np.int8) for a in around)
            turns = sum((a == 0) & (b == 1) for a, b in zip(around, around[1:] + around[:1], strict=True))
            edge = (n * e * s == 0) & (e * s * w == 0) if first else (n * e * w == 0) & (n * s * w == 0)
            gone = (x == 1) & (count >= 2) & (count <= 6) & (turns == 1) & edge
            changed |= bool(gone.any())
            x[gone] = 0
    return x[:, 1:-1, 1:-1]


def _characters(have):
    """(font, character, kind, case) of everything that is drawn; `have(font)` gives the code points of a font."""
    for font in FONTS:
        for digit in range(10):
            yield font, str(digit), digit, 0
        for i, letter in enumerate(LETTERS):
            yield font, letter, 10 + i, 0 if letter in ALIKE else 1
            yield font, letter.upper(), 10 + i, 0 if letter in ALIKE else 2
    for font in ("STIXGeneral", "DejaVuSans"):  # digits of the mathematical alphabets; double-struck ones are left out
        for style in (0, 2, 3, 4):
            for digit in range(10):
                code = 0x1D7CE + 10 * style + digit
                if code in have(font):
                    yield font, chr(code), digit, 0
    for i, characters in enumerate(SYMBOLS.values()):
        for character in characters:
            for font in SYMBOL_FONTS:
                if ord(character) in have(font):
                    yield font, character, 36 + i, 0


@cache
def bank() -> Bank:
    """All masks; drawn once per process, in a few seconds, always the same."""
    import matplotlib
    from fontTools.ttLib import TTFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = {name: ImageFont.truetype(str(folder / f"{name}.ttf"), 64) for name in FONTS}
    have = cache(lambda name: set(TTFont(folder / f"{name}.ttf").getBestCmap() or ()))
    every = ((_draw(fonts[f], c), kind, case) for f, c, kind, case in _characters(have))
    drawn = [(mask, kind, case) for mask, kind, case in every if mask is not None]
    printed = np.stack([mask for mask, _, _ in drawn])
    bones = torch.from_numpy(thin(printed > 110)).float()[:, None]
    y, x = torch.meshgrid(torch.arange(-4, 5.0), torch.arange(-4, 5.0), indexing="ij")
    levels = [torch.from_numpy(printed)[:, None]]
    for radius in RADII:
        disc = ((y**2 + x**2) <= radius**2 + 0.3).float()[None, None]
        levels.append((F.conv2d(bones, disc, padding=4) > 0).to(torch.uint8) * 255)
    rng = np.random.RandomState(0)
    ways = [(digit, way, i) for digit in WAYS for way in range(len(WAYS[digit])) for i in range(72 // len(WAYS[digit]))]
    written = torch.from_numpy(np.stack([write(digit, way, rng, SIZE, PENS) for digit, way, _ in ways]))
    kinds, cases = [k for _, k, _ in drawn] + [d for d, _, _ in ways], [c for *_, c in drawn] + [0] * len(ways)
    pen = torch.arange(len(kinds)) >= len(drawn)
    return Bank(torch.cat([torch.cat(levels, 1), written]), torch.tensor(kinds), torch.tensor(cases), pen)
