"""The class token of an image tower before it is projected: against open_clip's own, from the cache, and refused."""

from copy import copy

import pytest
import torch
from shared import OWN_GOLDEN, golden, golden_clip_of, golden_model_of, images

import vlprompt
from vlprompt.backbones.feature_cache import attach_disk_cache
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.images import ImageItem, PixelBatch, Preprocessing, build_images, persistent_key
from vlprompt.core.prompt import Prompt
from vlprompt.testing.images import draw_pixels


@pytest.fixture(scope="module")
def tower():
    return golden_clip_of(OWN_GOLDEN).image


@pytest.fixture(scope="module")
def pixels():
    return golden("clip-zeroshot", OWN_GOLDEN)[1]["images"]


def test_it_is_open_clips_class_token_behind_the_last_norm(tower, pixels):
    visual = golden_model_of(OWN_GOLDEN).visual
    projection, visual.proj = visual.proj, None
    try:
        with torch.no_grad():
            wanted = visual(pixels)
    finally:
        visual.proj = projection
    row = tower(images(pixels, "class"), output="class")
    assert row.shape == (len(pixels), tower.dim)
    assert (row - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (tower.project_rows(row) - tower(images(pixels, "class"))).abs().max() < 1e-5


def test_it_is_one_pass_with_other_outputs_and_sees_the_prompt(tower, pixels):
    prompt = Prompt(tokens={0: 0.1 * torch.randn(1, 2, tower.dim, generator=torch.Generator().manual_seed(0))})
    both = tower.read(images(pixels, "both"), prompt, ("class", "pooled"))
    alone = tower(images(pixels, "both"), prompt, "class")
    assert torch.equal(both[0], alone)
    assert torch.equal(tower.project_rows(both[0]), both[1])
    assert not torch.allclose(alone, tower(images(pixels, "both"), output="class"), atol=1e-3)


def test_it_is_cached_beside_the_feature(pixels):
    tower = vlprompt.load("glyph").image
    inputs = images(draw_pixels(3, tower.preprocessing.size, "row"), "row")
    for output, misses, hits in (("class", 3, 0), ("pooled", 6, 0), ("class", 6, 3), ("pooled", 6, 6)):
        tower(inputs, output=output)
        counts = tower.feature_cache.counts
        assert (counts.misses, counts.hits) == (misses, hits)
    row, traced = (tower(x, output="class") for x in (inputs, PixelBatch(inputs.pixels(tower.preprocessing))))
    assert torch.allclose(row, traced, atol=1e-5)
    assert not torch.allclose(row, tower(inputs), atol=1e-2)  # both have 64 numbers here


def test_another_process_finds_it_on_the_disk(tmp_path):
    pixels, rows = draw_pixels(2, (32, 32), "disk"), []
    for _ in range(2):
        clip = vlprompt.load("glyph")
        attach_disk_cache(clip, tmp_path)
        items = [ImageItem(persistent_key("disk", i), lambda look, view, i=i: pixels[i]) for i in range(2)]
        rows.append(clip.image(build_images(items, [None] * 2), output="class"))
        counts = clip.image.feature_cache.counts
        clip.image.feature_cache.flush()
    assert (counts.misses, counts.hits) == (0, 2)
    assert torch.equal(*rows)


def test_towers_without_a_class_token_refuse(tower, pixels):
    opaque = ImageTower(lambda x: x.flatten(1), 3 * 32 * 32, Preprocessing((32, 32)), "opaque#0", torch.device("cpu"))
    with pytest.raises(ValueError, match=r"image tower of opaque: expected a block-wise tower .*token outputs"):
        opaque(images(pixels, "opaque"), output="class")
    (averaging := copy(tower)).n_pooled_tokens = None
    with pytest.raises(ValueError, match=r"class token alone for output 'class', got a pool over all tokens"):
        averaging(images(pixels, "cached"), output="class")
    with pytest.raises(ValueError, match=r"class token alone for output 'class', got a pool over all tokens"):
        averaging.read(images(pixels, "read"), Prompt(), ("class",))
