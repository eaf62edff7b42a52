"""Glyph masks from the fonts that matplotlib ships and from pen strokes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vlprompt.data.builtin.glyphs.pens import DIGIT_STROKES, WrittenDigit
from vlprompt.data.builtin.glyphs.words import LETTERS, SAME_IN_BOTH_CASES, SYMBOLS

MASK_SIZE = 48  # pixels of a mask's side; the glyph fills 5/6 of it
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
PEN_RADII = (0.9, 1.6, 2.4, 3.3)  # of the pen that redraws a skeletonised glyph, in mask pixels
PEN_WIDTHS = (2.6, 2.0, 3.4, 5.0, 6.8)  # widths of the written digits, for the same five levels


@dataclass(frozen=True)
class GlyphBank:
    """Masks of all glyphs, each drawn when it is first asked for, and their attributes.

    Args:
        printed: uint8 (P, MASK_SIZE, MASK_SIZE), the first P glyphs as printed.
        written: digits of pen strokes, the glyphs after those.
        kind: class of each glyph (M,).
        case: (M,), 0 if both cases look the same, 1 lower, 2 upper.
        is_handwritten: (M,), whether a glyph is drawn from pen strokes.
    """

    printed: Tensor
    written: Sequence[WrittenDigit]
    kind: Tensor
    case: Tensor
    is_handwritten: Tensor
    _masks: Tensor = field(init=False)  # uint8 (M, 5, MASK_SIZE, MASK_SIZE)
    _is_drawn: Tensor = field(init=False)  # (M, 5)

    def __post_init__(self) -> None:
        n, levels = len(self.kind), len(PEN_WIDTHS)
        object.__setattr__(self, "_masks", torch.zeros(n, levels, MASK_SIZE, MASK_SIZE, dtype=torch.uint8))
        object.__setattr__(self, "_is_drawn", torch.zeros(n, levels, dtype=torch.bool))

    def select(self, rows: Tensor, levels: Tensor) -> Tensor:
        """Return the masks (n, MASK_SIZE, MASK_SIZE) of glyphs, uint8: level 0 as printed, 1..4 by stroke thickness."""
        missing = torch.stack([rows, levels], 1)[~self._is_drawn[rows, levels]].unique(dim=0)
        self._draw_printed(missing[missing[:, 0] < len(self.printed)])
        for row, level in missing[missing[:, 0] >= len(self.printed)].tolist():
            mask = self.written[row - len(self.printed)].draw(PEN_WIDTHS[level])
            self._masks[row, level] = torch.from_numpy(mask.copy())
        self._is_drawn[missing[:, 0], missing[:, 1]] = True  # last, for a thread that reads at the same time
        return self._masks[rows, levels]

    def _draw_printed(self, missing: Tensor) -> None:
        """Draw (row, level) of printed glyphs."""
        rows = missing[missing[:, 1] == 0, 0]
        self._masks[rows, 0] = self.printed[rows]
        thin = missing[missing[:, 1] > 0, 0].unique()
        if not len(thin):
            return
        bones = torch.from_numpy(skeletonize(self.printed[thin].numpy() > 110)).float()[:, None]
        y, x = torch.meshgrid(torch.arange(-4, 5.0), torch.arange(-4, 5.0), indexing="ij")
        for level, radius in enumerate(PEN_RADII, 1):
            rows = missing[missing[:, 1] == level, 0]
            disc = ((y**2 + x**2) <= radius**2 + 0.3).float()[None, None]
            inked = F.conv2d(bones[torch.searchsorted(thin, rows)], disc, padding=4) > 0
            self._masks[rows, level] = inked[:, 0].to(torch.uint8) * 255


def _draw_mask(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    canvas = Image.new("L", (160, 160), 0)
    ImageDraw.Draw(canvas).text((40, 30), character, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        return None
    glyph = canvas.crop(box)
    scale = MASK_SIZE * 5 / 6 / max(glyph.size)
    w, h = (max(3, round(side * scale)) for side in glyph.size)
    mask = Image.new("L", (MASK_SIZE, MASK_SIZE), 0)
    mask.paste(glyph.resize((w, h), Image.Resampling.LANCZOS), ((MASK_SIZE - w) // 2, (MASK_SIZE - h) // 2))
    return np.asarray(mask)


def skeletonize(shapes: np.ndarray) -> np.ndarray:
    """Skeletonise boolean shapes (M, h, w) by Zhang and Suen's parallel thinning (CACM 1984)."""
    x = np.pad(shapes, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    # neighbours N, NE, E, SE, S, SW, W, NW
    moves = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
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


def _iter_characters(code_points):
    """Yield (font, character, kind, case) of every glyph; `code_points(font)` returns a font's code points."""
    for font in FONTS:
        for digit in range(10):
            yield font, str(digit), digit, 0
        for i, letter in enumerate(LETTERS):
            yield font, letter, 10 + i, 0 if letter in SAME_IN_BOTH_CASES else 1
            yield font, letter.upper(), 10 + i, 0 if letter in SAME_IN_BOTH_CASES else 2
    for font in ("STIXGeneral", "DejaVuSans"):  # digits of the mathematical alphabets; double-struck ones are left out
        for style in (0, 2, 3, 4):
            for digit in range(10):
                code = 0x1D7CE + 10 * style + digit
                if code in code_points(font):
                    yield font, chr(code), digit, 0
    for i, characters in enumerate(SYMBOLS.values()):
        for character in characters:
            for font in SYMBOL_FONTS:
                if ord(character) in code_points(font):
                    yield font, character, 36 + i, 0


@cache
def build_bank() -> GlyphBank:
    """Return all glyphs, deterministically, once per process."""
    import matplotlib
    from fontTools.ttLib import TTFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = {name: ImageFont.truetype(str(folder / f"{name}.ttf"), 64) for name in FONTS}
    code_points = cache(lambda name: set(TTFont(folder / f"{name}.ttf").getBestCmap() or ()))
    candidates = ((_draw_mask(fonts[f], c), kind, case) for f, c, kind, case in _iter_characters(code_points))
    drawn = [(mask, kind, case) for mask, kind, case in candidates if mask is not None]
    printed = torch.from_numpy(np.stack([mask for mask, _, _ in drawn]))
    rng = np.random.RandomState(0)
    written = [
        WrittenDigit.sample(digit, variant, rng, MASK_SIZE)
        for digit in DIGIT_STROKES
        for variant in range(len(DIGIT_STROKES[digit]))
        for _ in range(72 // len(DIGIT_STROKES[digit]))
    ]
    kinds = [kind for _, kind, _ in drawn] + [digit.digit for digit in written]
    cases = [case for *_, case in drawn] + [0] * len(written)
    is_handwritten = torch.arange(len(kinds)) >= len(drawn)
    return GlyphBank(printed, written, torch.tensor(kinds), torch.tensor(cases), is_handwritten)
