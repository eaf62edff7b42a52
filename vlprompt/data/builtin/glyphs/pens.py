"""Handwritten digits: strokes through control points that are jittered for every sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw


def _oval(x, y, rx, ry, start=-90.0, turn=-360.0, n=9):
    angles = [math.radians(start + turn * i / (n - 1)) for i in range(n)]
    return "curve", [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _curve(*points):
    return "curve", list(points)


def _line(*points):
    return "line", list(points)


DIGIT_STROKES = {  # digit -> variants -> strokes in a unit square, y downwards
    0: [
        [_oval(0.5, 0.5, 0.42, 0.5)],
        [_oval(0.5, 0.5, 0.3, 0.5, -65)],
        [_oval(0.5, 0.5, 0.44, 0.5, -105, -395, 10)],
    ],
    1: [
        [_line((0.5, 0), (0.5, 1))],
        [_line((0.22, 0.27), (0.56, 0), (0.56, 1))],
        [_line((0.22, 0.25), (0.55, 0), (0.55, 1)), _line((0.2, 1), (0.88, 1))],
        [_line((0.08, 0.48), (0.6, 0), (0.54, 1))],
        [_line((0.62, 0), (0.4, 1))],
    ],
    2: [
        [_curve((0.12, 0.26), (0.32, 0.03), (0.7, 0.04), (0.86, 0.3), (0.62, 0.62), (0.1, 1)),
         _line((0.1, 1), (0.94, 1))],
        [_curve((0.1, 0.24), (0.38, 0.02), (0.76, 0.07), (0.84, 0.32), (0.52, 0.72), (0.16, 0.96), (0.1, 0.82),
                (0.32, 0.78), (0.6, 0.94), (0.95, 0.93))],
        [_curve((0.15, 0.15), (0.5, 0), (0.85, 0.2), (0.7, 0.55), (0.12, 0.98)),
         _curve((0.12, 0.98), (0.5, 0.92), (0.92, 1))],
    ],
    3: [
        [_curve((0.12, 0.12), (0.46, 0), (0.8, 0.16), (0.74, 0.38), (0.42, 0.48)),
         _curve((0.42, 0.48), (0.84, 0.58), (0.87, 0.83), (0.5, 1), (0.1, 0.88))],
        [_line((0.12, 0), (0.84, 0), (0.42, 0.42)),
         _curve((0.42, 0.42), (0.84, 0.54), (0.85, 0.86), (0.48, 1), (0.1, 0.9))],
        [_curve((0.1, 0.1), (0.5, 0), (0.84, 0.2), (0.5, 0.48), (0.88, 0.74), (0.5, 1), (0.06, 0.9))],
    ],
    4: [
        [_line((0.26, 0), (0.1, 0.58), (0.94, 0.58)), _line((0.7, 0.2), (0.66, 1))],
        [_line((0.7, 1), (0.7, 0), (0.06, 0.68), (0.95, 0.68))],
        [_curve((0.2, 0.05), (0.08, 0.44), (0.3, 0.6), (0.76, 0.5)), _line((0.8, 0), (0.7, 1))],
        [_line((0.46, 0), (0.06, 0.6), (0.94, 0.56)), _line((0.68, 0.34), (0.62, 1))],
    ],
    5: [
        [_line((0.85, 0), (0.22, 0), (0.16, 0.42)),
         _curve((0.16, 0.42), (0.5, 0.34), (0.87, 0.55), (0.8, 0.88), (0.42, 1), (0.1, 0.88))],
        [_curve((0.9, 0.01), (0.32, 0.05), (0.2, 0.4), (0.6, 0.42), (0.84, 0.7), (0.5, 1), (0.1, 0.95))],
        [_line((0.26, 0.03), (0.2, 0.44)), _curve((0.2, 0.44), (0.6, 0.4), (0.84, 0.65), (0.6, 0.97), (0.12, 0.99)),
         _line((0.26, 0.03), (0.94, 0))],
    ],
    6: [
        [_curve((0.74, 0.02), (0.36, 0.2), (0.1, 0.6), (0.26, 0.95), (0.6, 1), (0.87, 0.8), (0.74, 0.56),
                (0.4, 0.53), (0.15, 0.72))],
        [_curve((0.46, 0), (0.2, 0.35), (0.1, 0.75), (0.4, 1), (0.8, 0.9), (0.8, 0.66), (0.46, 0.6), (0.16, 0.8))],
        [_curve((0.6, 0), (0.26, 0.3), (0.15, 0.75), (0.5, 1), (0.84, 0.75), (0.55, 0.51), (0.2, 0.7))],
    ],
    7: [
        [_line((0.08, 0), (0.92, 0), (0.4, 1))],
        [_line((0.08, 0), (0.92, 0), (0.42, 1)), _line((0.25, 0.5), (0.84, 0.48))],
        [_line((0.08, 0.06), (0.92, 0.02)), _curve((0.92, 0.02), (0.56, 0.5), (0.44, 1))],
        [_line((0.06, 0.2), (0.1, 0.03), (0.9, 0.03)), _curve((0.9, 0.03), (0.6, 0.45), (0.5, 1)),
         _line((0.2, 0.55), (0.88, 0.5))],
        [_curve((0.06, 0.14), (0.3, 0.02), (0.6, 0.08), (0.9, 0.0)), _line((0.9, 0.0), (0.36, 1))],
    ],
    8: [
        [_curve((0.84, 0.15), (0.5, 0), (0.16, 0.2), (0.46, 0.47), (0.84, 0.75), (0.5, 1), (0.13, 0.78),
                (0.5, 0.47), (0.84, 0.15))],
        [_oval(0.5, 0.24, 0.33, 0.24), _oval(0.5, 0.74, 0.42, 0.26)],
        [_oval(0.5, 0.26, 0.35, 0.26), _oval(0.5, 0.76, 0.33, 0.24)],
        [_curve((0.8, 0.05), (0.36, 0.05), (0.26, 0.3), (0.64, 0.6), (0.7, 0.9), (0.4, 1), (0.26, 0.85), (0.5, 0.5),
                (0.84, 0.05))],
    ],
    9: [
        [_curve((0.84, 0.2), (0.5, 0), (0.13, 0.22), (0.3, 0.5), (0.7, 0.47), (0.84, 0.2)),
         _line((0.86, 0.12), (0.8, 1))],
        [_curve((0.84, 0.2), (0.5, 0), (0.13, 0.22), (0.3, 0.5), (0.7, 0.47), (0.86, 0.18)),
         _curve((0.86, 0.18), (0.84, 0.6), (0.64, 0.95), (0.2, 1))],
        [_curve((0.84, 0.15), (0.46, 0), (0.16, 0.25), (0.4, 0.46), (0.8, 0.2)),
         _curve((0.8, 0.2), (0.74, 0.6), (0.45, 1))],
        [_oval(0.48, 0.28, 0.34, 0.27), _line((0.82, 0.3), (0.8, 1))],
    ],
}  # fmt: skip


def _spline(points: np.ndarray, n: int = 10) -> np.ndarray:
    """Interpolate points (k, 2) with a Catmull-Rom spline, n samples per segment."""
    p = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    parts = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
        parts.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*parts, points[-1:]])


@dataclass(frozen=True)
class WrittenDigit:
    """A sample of a digit.

    Args:
        digit: which.
        strokes: points (k, 2) of each, around the origin.
        size: pixels of the image's side.
    """

    digit: int
    strokes: Sequence[np.ndarray]
    size: int

    @classmethod
    def sample(cls, digit: int, variant: int, rng: np.random.RandomState, size: int) -> "WrittenDigit":
        """Sample the strokes of a variant of a digit."""
        strokes = []
        for kind, points in DIGIT_STROKES[digit][variant]:
            p = np.array(points) + rng.randn(len(points), 2) * 0.045
            strokes.append(_spline(p) if kind == "curve" else p)
        ends = np.concatenate(strokes)
        middle, squeeze = (ends.min(0) + ends.max(0)) / 2, np.array([0.62 * math.exp(rng.randn() * 0.15), 1.0])
        return cls(digit, [(s - middle) * squeeze for s in strokes], size)

    def draw(self, width: float) -> np.ndarray:
        """Draw it with a pen of this width in pixels: uint8 (size, size), white on black."""
        extent, fine = max(np.abs(np.concatenate(self.strokes)).max() * 2, 0.2), 4
        canvas = Image.new("L", (self.size * fine, self.size * fine), 0)
        pen, scale, r = ImageDraw.Draw(canvas), (self.size * 5 / 6 - width) * fine / extent, width * fine / 2
        for stroke in self.strokes:
            path = [tuple(q) for q in (stroke * scale + self.size * fine / 2).tolist()]
            pen.line(path, fill=255, width=round(width * fine), joint="curve")
            for x, y in (*path[::3], path[-1]):
                pen.ellipse([x - r, y - r, x + r, y + r], fill=255)
        return np.asarray(canvas.resize((self.size, self.size), Image.Resampling.BOX))
