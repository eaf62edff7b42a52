"""Scenes of one to three rendered glyphs in one picture of 32 x 32 pixels, which have several labels.

The classes are the ten digits and ten symbols. A scene has one colour of the ground and places in its four corners, which
overlap a little; each glyph has its own ink. Classes are drawn alike and apart, so that none tells of another.
"""

import random
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlprompt.data.builtin.glyphs.render import ATTRIBUTES, GlyphRenderer
from vlprompt.data.builtin.glyphs.words import COLOURS

SCENE_SIZES = {"train": 600, "val": 150, "test": 600}
SEEDS = {"train": 2_000_001, "val": 2_000_002, "test": 2_000_003}  # no pretraining run uses these
KINDS = (*range(10), *range(36, 46))  # the digits, and star to left arrow
SCENE_SIZE, GLYPH_SIZE = 32, 20  # pixels
MAX_GLYPHS = 3
MIN_CONTRAST = 0.8  # least sum of the differences of ink and ground in red, green and blue, each 0..1
COLOUR_ROWS = torch.tensor(list(COLOURS.values()))


class Scenes(NamedTuple):
    """Images uint8 (N, 32, 32, 3), and the places in KINDS of the classes in each."""

    images: Tensor
    labels: tuple[tuple[int, ...], ...]


@cache
def render_scenes(split: str) -> Scenes:
    """Render the scenes of a split."""
    rng, renderer = random.Random(f"scenes {split}"), GlyphRenderer(SEEDS[split], GLYPH_SIZE)
    labels, grounds, attributes, corners = list[tuple[int, ...]](), list[int](), list[dict[str, int]](), list[int]()
    for index in range(SCENE_SIZES[split]):
        labels.append(tuple(sorted(rng.sample(range(len(KINDS)), rng.randint(1, MAX_GLYPHS)))))
        grounds.append(rng.randrange(len(COLOURS)))
        inks = _list_inks(grounds[-1])
        for label, corner in zip(labels[-1], rng.sample(range(4), len(labels[-1])), strict=True):
            drawn = renderer.sample_attributes(KINDS[label])
            attributes.append(drawn | {"ink": rng.choice(inks), "size": 1, "stroke": rng.choice((0, 1))})
            corners.append(4 * index + corner)
    columns = {name: torch.tensor([drawn[name] for drawn in attributes]) for name in ATTRIBUTES}
    images = COLOUR_ROWS[grounds][:, :, None, None].repeat(1, 1, SCENE_SIZE, SCENE_SIZE)
    for ink, colour, corner in zip(renderer.render_ink(columns), columns["ink"].tolist(), corners, strict=True):
        row, column = (place * (SCENE_SIZE - GLYPH_SIZE) for place in divmod(corner % 4, 2))
        part = images[corner // 4, :, row : row + GLYPH_SIZE, column : column + GLYPH_SIZE]
        part.lerp_(COLOUR_ROWS[colour][:, None, None].expand_as(part), ink.expand_as(part))
    return Scenes((images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1), tuple(labels))


def _list_inks(ground: int) -> list[int]:
    contrast = (COLOUR_ROWS - COLOUR_ROWS[ground]).abs().sum(1)
    return [k for k, value in enumerate(contrast.tolist()) if value > MIN_CONTRAST]


def open_scene(split: str, index: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(render_scenes(split).images[index].numpy()))


def list_scenes() -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the labels of each scene, by split."""
    return {split: render_scenes(split).labels for split in SCENE_SIZES}
