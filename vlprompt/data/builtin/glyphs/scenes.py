"""Scenes of one to three rendered digits in one picture of 32 x 32 pixels, which have several labels.

A scene is white on black or black on white, and has four places; no digit stands there twice. Classes are drawn alike
and apart, so that none predicts another.
"""

import random
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlprompt.data.builtin.glyphs.render import ATTRIBUTES, BLACK, WHITE, GlyphRenderer

SCENE_SIZES = {"train": 600, "val": 150, "test": 600}
SEEDS = {"train": 2_000_001, "val": 2_000_002, "test": 2_000_003}  # no pretraining run uses these
N_CLASSES = 10  # the first glyphs are the digits
GLYPH_SIZE, MAX_GLYPHS = 16, 3  # pixels of a place
DETAIL = 0.3  # little distortion: the places are small
PRINTED = {"hand": 0, "size": 1, "stroke": 1}  # large and bold


class Scenes(NamedTuple):
    """Images uint8 (N, 32, 32, 3), and the digits in each."""

    images: Tensor
    labels: tuple[tuple[int, ...], ...]


@cache
def render_scenes(split: str) -> Scenes:
    """Render the scenes of a split."""
    rng, renderer = random.Random(f"scenes {split}"), GlyphRenderer(SEEDS[split], GLYPH_SIZE, detail=DETAIL)
    labels, is_dark, attributes, corners = list[tuple[int, ...]](), list[bool](), list[dict[str, int]](), list[int]()
    for index in range(SCENE_SIZES[split]):
        labels.append(tuple(sorted(rng.sample(range(N_CLASSES), rng.randint(1, MAX_GLYPHS)))))
        is_dark.append(rng.random() < 0.5)
        for label, corner in zip(labels[-1], rng.sample(range(4), len(labels[-1])), strict=True):
            ink, ground = (WHITE, BLACK) if is_dark[-1] else (BLACK, WHITE)
            attributes.append(renderer.sample_attributes(label) | PRINTED | {"ink": ink, "ground": ground})
            corners.append(4 * index + corner)
    columns = {name: torch.tensor([drawn[name] for drawn in attributes]) for name in ATTRIBUTES}
    tiles = torch.zeros(4 * len(labels), GLYPH_SIZE, GLYPH_SIZE)
    tiles[corners] = renderer.render_ink(columns)[:, 0]
    rows = tiles.view(-1, 2, 2, GLYPH_SIZE, GLYPH_SIZE).transpose(2, 3)
    ink_map = rows.reshape(-1, 2 * GLYPH_SIZE, 2 * GLYPH_SIZE, 1).clamp(0, 1)
    grey = torch.where(torch.tensor(is_dark)[:, None, None, None], ink_map, 1 - ink_map)
    return Scenes((grey * 255).round().byte().expand(-1, -1, -1, 3), tuple(labels))


def open_scene(split: str, index: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(render_scenes(split).images[index].numpy()))


def list_scenes() -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the labels of each scene, by split."""
    return {split: render_scenes(split).labels for split in SCENE_SIZES}
