"""Sample glyph attributes and render their images: pose, pen, colour, blur, noise, low resolution."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.data.builtin.glyphs.bank import MASK_SIZE, build_bank
from vlprompt.data.builtin.glyphs.words import COLOURS, KINDS

ATTRIBUTES = ("kind", "case", "hand", "ink", "ground", "quality", "stroke", "size")
WHITE, BLACK = list(COLOURS).index("white"), list(COLOURS).index("black")


class GlyphRenderer:
    """A seeded sampler of glyph attributes and their images.

    Args:
        seed: seeds all random numbers.
        size: pixels of an image's side.
        kind_weights: relative frequencies of digits, letters and symbols.
        detail: 0..1, the amount of colour, distortion and quality degradation.
    """

    def __init__(
        self, seed: int, size: int = 32, kind_weights: tuple[float, ...] = (0.45, 0.37, 0.18), detail: float = 1.0
    ):
        self.size, self.kind_weights, self.detail = size, kind_weights, detail
        self.rng, self.generator = random.Random(f"glyphs {seed}"), torch.Generator().manual_seed(seed)
        self.bank = build_bank()
        self.mask_indices: dict[tuple[int, int, bool], list[int]] = {}  # (kind, case, pen) -> rows of the bank
        rows = zip(self.bank.kind.tolist(), self.bank.case.tolist(), self.bank.is_handwritten.tolist(), strict=True)
        for i, key in enumerate(rows):
            self.mask_indices.setdefault(key, []).append(i)

    def has_case(self, kind: int) -> bool:
        return (kind, 1, False) in self.mask_indices

    def sample_attributes(self, kind: int | None = None) -> dict[str, int]:
        """Sample attributes of a class, or of a random one."""
        rng, colours = self.rng, len(COLOURS)
        if kind is None:
            group = rng.choices(("digit", "letter", "symbol"), self.kind_weights)[0]
            kind = rng.choice([i for i, k in enumerate(KINDS) if k == group])
        if rng.random() < 1 - 0.65 * self.detail:
            ink, ground = (WHITE, BLACK) if rng.random() < 0.6 else (BLACK, WHITE)
        else:
            ink, ground = rng.sample(range(colours), 2)
        quality = 3 if rng.random() < 0.35 else rng.randrange(3)
        if quality in (1, 2) and rng.random() > self.detail:
            quality = 0
        return {
            "kind": kind,
            "case": rng.choice((1, 2)) if self.has_case(kind) else 0,
            "hand": int(rng.random() < 0.6),
            "ink": ink,
            "ground": ground,
            "quality": quality,
            "stroke": rng.choice((-1, 0, 0, 1)),
            "size": rng.choice((-1, 0, 1, 1)),
        }

    def render(self, attributes: list[dict[str, int]]) -> Tensor:
        """Render n images (n, 3, size, size) in 0..1, one for each item of `attributes`."""
        columns = {name: torch.tensor([item[name] for item in attributes]) for name in ATTRIBUTES}
        ink = self.render_ink(columns)
        return self._degrade(self._paint(ink, columns), columns["quality"]).clamp(0, 1)

    def _uniform(self, *shape):
        return torch.rand(*shape, generator=self.generator)

    def _normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def _choose_mask(self, kind: int, case: int, handwritten: int) -> int:
        pen = kind < 10 and bool(handwritten) and self.rng.random() < 0.5
        return self.rng.choice(self.mask_indices[kind, case, pen])

    def render_ink(self, attributes: dict[str, Tensor]) -> Tensor:
        """Render the ink mask (n, 1, size, size): stroke width, affine pose, elastic deformation."""
        n, hand, stroke = len(attributes["kind"]), attributes["hand"].bool(), attributes["stroke"]
        kinds, cases, hands = (attributes[a].tolist() for a in ("kind", "case", "hand"))
        rows = torch.tensor([self._choose_mask(*key) for key in zip(kinds, cases, hands, strict=True)])
        written = torch.where(stroke < 0, 1, torch.where(stroke > 0, 4, 2 + (self._uniform(n) < 0.5).long()))
        mask = self.bank.select(rows, torch.where(hand, written, 0)).float()[:, None] / 255
        thick, thin = ~hand & (stroke > 0), ~hand & (stroke < 0)
        mask[thick] = F.max_pool2d(mask[thick], 5, 1, 2)
        mask[thin] = 0.4 * mask[thin] - 0.6 * F.max_pool2d(-mask[thin], 2, 1, 1)[:, :, :MASK_SIZE, :MASK_SIZE]

        wild = hand.float() * (0.3 + 0.7 * self.detail)  # printed glyphs move little, handwriting much
        angle, shear = self._normal(n) * (0.05 + 0.13 * wild), self._normal(n) * (0.04 + 0.22 * wild)
        small, large = 0.5 + 0.15 * self._uniform(n), 0.88 + 0.24 * self._uniform(n)
        size = torch.where(
            attributes["size"] < 0, small, torch.where(attributes["size"] > 0, large, 0.66 + 0.2 * self._uniform(n))
        )
        wide = size * torch.exp(self._normal(n) * (0.06 + 0.16 * wild))
        high = size * torch.exp(self._normal(n) * (0.04 + 0.04 * wild))
        c, s = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([c / wide, (s + shear) / wide], -1), torch.stack([-s / high, c / high], -1)], 1)
        shift = (self._uniform(n, 2) * 2 - 1) * (1.08 - size).clamp(min=0.04)[:, None] * 0.8
        pose = torch.cat([turn, -(turn @ shift[:, :, None])], -1) * (5 / 6)
        grid = F.affine_grid(pose, [n, 1, self.size, self.size], align_corners=False)
        for knots, min_bend, max_bend in ((4, 0.02, 0.12), (7, 0.004, 0.035)):  # slow and fast bends
            bend = F.interpolate(
                self._normal(n, 2, knots, knots), (self.size, self.size), mode="bicubic", align_corners=True
            )
            grid = grid + (bend * (min_bend + max_bend * wild * self._uniform(n))[:, None, None, None]).permute(
                0, 2, 3, 1
            )
        return F.grid_sample(mask, grid, align_corners=False)

    def _paint(self, ink: Tensor, attributes: dict[str, Tensor]) -> Tensor:
        n, colours = len(ink), torch.tensor(list(COLOURS.values()))
        pure = (self._uniform(n) < 0.3)[:, None]  # exact black and white, without texture

        def colour(index):
            c = (colours[index] + 0.05 * self._normal(n, 3)).clamp(0, 1)
            return torch.where(pure & ((index == WHITE) | (index == BLACK))[:, None], c.round(), c)[:, :, None, None]

        paint, paper = colour(attributes["ink"]), colour(attributes["ground"])
        texture = F.interpolate(self._normal(n, 3, 3, 3), (self.size, self.size), mode="bilinear", align_corners=True)
        strength = 0.06 * self._uniform(n) * ~pure[:, 0]
        return paper * (1 - ink) + paint * ink + texture * strength[:, None, None, None]

    def _degrade(self, x: Tensor, quality: Tensor) -> Tensor:
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
