"""Looks (attributes) of glyphs and the images they make: pose, pen, colour, blur, noise, low resolution."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.data.builtin.glyphs.bank import SIZE, bank
from vlprompt.data.builtin.glyphs.words import COLOURS, KINDS

ATTRIBUTES = ("kind", "case", "hand", "ink", "ground", "quality", "stroke", "size")
WHITE, BLACK = list(COLOURS).index("white"), list(COLOURS).index("black")


class Glyphs:
    """An endless, seeded source of looks and of their images.

    shares: how often a digit, a letter, a symbol is drawn. detail 0..1 ramps up colours, distortion and bad quality.
    """

    def __init__(self, seed: int, size: int = 32, shares: tuple[float, ...] = (0.45, 0.37, 0.18), detail: float = 1.0):
        self.size, self.shares, self.detail = size, shares, detail
        self.rng, self.generator = random.Random(f"glyphs {seed}"), torch.Generator().manual_seed(seed)
        self.bank = bank()
        self.places: dict[tuple[int, int, bool], list[int]] = {}  # (kind, case, pen) -> rows of the bank
        rows = zip(self.bank.kind.tolist(), self.bank.case.tolist(), self.bank.pen.tolist(), strict=True)
        for i, key in enumerate(rows):
            self.places.setdefault(key, []).append(i)

    def cased(self, kind: int) -> bool:
        return (kind, 1, False) in self.places

    def look(self, kind: int | None = None) -> dict[str, int]:
        """Random attributes, of a given class or of any."""
        rng, colours = self.rng, len(COLOURS)
        if kind is None:
            wanted = rng.choices(("digit", "letter", "symbol"), self.shares)[0]
            kind = rng.choice([i for i, k in enumerate(KINDS) if k == wanted])
        if rng.random() < 1 - 0.65 * self.detail:
            ink, ground = (WHITE, BLACK) if rng.random() < 0.6 else (BLACK, WHITE)
        else:
            ink, ground = rng.sample(range(colours), 2)
        quality = 3 if rng.random() < 0.35 else rng.randrange(3)
        if quality in (1, 2) and rng.random() > self.detail:
            quality = 0
        return {
            "kind": kind,
            "case": rng.choice((1, 2)) if self.cased(kind) else 0,
            "hand": int(rng.random() < 0.6),
            "ink": ink,
            "ground": ground,
            "quality": quality,
            "stroke": rng.choice((-1, 0, 0, 1)),
            "size": rng.choice((-1, 0, 1, 1)),
        }

    def draw(self, looks: list[dict[str, int]]) -> Tensor:
        """Images (n, 3, size, size) in 0..1 of n looks."""
        t = {a: torch.tensor([look[a] for look in looks]) for a in ATTRIBUTES}
        ink = self._ink(t)
        return self._spoil(self._paint(ink, t), t["quality"]).clamp(0, 1)

    def _uniform(self, *shape):
        return torch.rand(*shape, generator=self.generator)

    def _normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def _row(self, kind: int, case: int, hand: int) -> int:
        pen = kind < 10 and bool(hand) and self.rng.random() < 0.5
        return self.rng.choice(self.places[kind, case, pen])

    def _ink(self, t: dict[str, Tensor]) -> Tensor:
        """Where the ink is: (n, 1, size, size), after the pen's width, an affine pose and an elastic bend."""
        n, hand, stroke = len(t["kind"]), t["hand"].bool(), t["stroke"]
        kinds, cases, hands = (t[a].tolist() for a in ("kind", "case", "hand"))
        rows = torch.tensor([self._row(*key) for key in zip(kinds, cases, hands, strict=True)])
        written = torch.where(stroke < 0, 1, torch.where(stroke > 0, 4, 2 + (self._uniform(n) < 0.5).long()))
        mask = self.bank.masks[rows, torch.where(hand, written, 0)].float()[:, None] / 255
        thick, thin = ~hand & (stroke > 0), ~hand & (stroke < 0)
        mask[thick] = F.max_pool2d(mask[thick], 5, 1, 2)
        mask[thin] = 0.4 * mask[thin] - 0.6 * F.max_pool2d(-mask[thin], 2, 1, 1)[:, :, :SIZE, :SIZE]

        wild = hand.float() * (0.3 + 0.7 * self.detail)  # printed glyphs move little, handwriting much
        angle, shear = self._normal(n) * (0.05 + 0.13 * wild), self._normal(n) * (0.04 + 0.22 * wild)
        small, large = 0.5 + 0.15 * self._uniform(n), 0.88 + 0.24 * self._uniform(n)
        size = torch.where(t["size"] < 0, small, torch.where(t["size"] > 0, large, 0.66 + 0.2 * self._uniform(n)))
        wide = size * torch.exp(self._normal(n) * (0.06 + 0.16 * wild))
        high = size * torch.exp(self._normal(n) * (0.04 + 0.04 * wild))
        c, s = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([c / wide, (s + shear) / wide], -1), torch.stack([-s / high, c / high], -1)], 1)
        shift = (self._uniform(n, 2) * 2 - 1) * (1.08 - size).clamp(min=0.04)[:, None] * 0.8
        pose = torch.cat([turn, -(turn @ shift[:, :, None])], -1) * (5 / 6)
        grid = F.affine_grid(pose, [n, 1, self.size, self.size], align_corners=False)
        for knots, least, most in ((4, 0.02, 0.12), (7, 0.004, 0.035)):  # slow and fast bends
            bend = F.interpolate(
                self._normal(n, 2, knots, knots), (self.size, self.size), mode="bicubic", align_corners=True
            )
            grid = grid + (bend * (least + most * wild * self._uniform(n))[:, None, None, None]).permute(0, 2, 3, 1)
        return F.grid_sample(mask, grid, align_corners=False)

    def _paint(self, ink: Tensor, t: dict[str, Tensor]) -> Tensor:
        n, colours = len(ink), torch.tensor(list(COLOURS.values()))
        pure = (self._uniform(n) < 0.3)[:, None]  # exact black and white, without texture

        def colour(index):
            c = (colours[index] + 0.05 * self._normal(n, 3)).clamp(0, 1)
            return torch.where(pure & ((index == WHITE) | (index == BLACK))[:, None], c.round(), c)[:, :, None, None]

        paint, paper = colour(t["ink"]), colour(t["ground"])
        texture = F.interpolate(self._normal(n, 3, 3, 3), (self.size, self.size), mode="bilinear", align_corners=True)
        strength = 0.06 * self._uniform(n) * ~pure[:, 0]
        return paper * (1 - ink) + paint * ink + texture * strength[:, None, None, None]

    def _spoil(self, x: Tensor, quality: Tensor) -> Tensor:
        """Blur (1), noise (2) or low resolution (3), in place."""
        blurred, noisy, coarse = ((quality == q).nonzero()[:, 0] for q in (1, 2, 3))
        if n := len(blurred):
            width, t = 0.9 + 1.1 * self._uniform(n), torch.arange(-4, 5.0)
            kernel = torch.exp(-(t**2) / 2 / width[:, None] ** 2)
            kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
            y = F.pad(x[blurred].flatten(0, 1)[None], (4, 4, 4, 4), mode="replicate")
            y = F.conv2d(F.conv2d(y, kernel[:, :, None], groups=3 * n), kernel[..., None], groups=3 * n)
            x[blurred] = y.view(n, 3, self.size, self.size)
        if n := len(noisy):
            grain = self._normal(n, 3 if self.rng.random() < 0.5 else 1, self.size, self.size)
            x[noisy] += grain * (0.06 + 0.14 * self._uniform(n))[:, None, None, None]
        for part in coarse.chunk(3) if len(coarse) else ():
            low = F.adaptive_avg_pool2d(x[part], self.rng.choice((7, 8, 8, 8, 9, 10, 11)))
            mode = self.rng.choice(("bicubic", "bicubic", "bilinear", "nearest"))
            x[part] = F.interpolate(low, (self.size, self.size), mode=mode)
        return x
