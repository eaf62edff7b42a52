"""Frozen image features in bfloat16: near those in float32, never taken for them."""

import pytest
import torch
from shared import images

import vlprompt
from vlprompt.backbones.missing_weights import describe_missing_weights
from vlprompt.backbones.schemes import choose_threads
from vlprompt.config.resolve import find_recipes
from vlprompt.core.prompt import Prompt

TIMM = "timm{}:vit_tiny_patch16_224/random"


@pytest.fixture(scope="module")
def pair():
    with pytest.warns(UserWarning, match="glyph-bf16: frozen image features are computed in bfloat16"):
        half = vlprompt.load("glyph-bf16")
    return vlprompt.load("glyph"), half


def test_features_are_near_those_in_float32_and_float32_themselves(pair):
    pixels = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, half = (clip.image(images(pixels)) for clip in pair)
    assert half.dtype == torch.float32
    assert not torch.equal(plain, half)
    assert torch.cosine_similarity(plain, half).min() > 0.9995
    assert half.equal(half.bfloat16().float()), "they have the precision that was said"
    alone = torch.cat([pair[1].image(images(pixels[i : i + 1], f"alone {i}")) for i in range(9)])
    assert torch.equal(alone, half), "bits depend on no batch"


def test_a_prompt_and_the_texts_are_as_in_float32(pair):
    pixels = torch.rand(2, 3, 32, 32)
    prompt = Prompt({0: torch.randn(1, 2, pair[0].image.dim)})
    plain, half = (clip.image(images(pixels), prompt) for clip in pair)
    assert torch.equal(plain, half)
    assert torch.equal(*(clip.text(["a one", "a two"]) for clip in pair))


def test_it_has_a_name_and_a_key_of_its_own_and_the_recipes_of_its_weights(pair):
    plain, half = pair
    assert half.spec == half.image.spec == "glyph-bf16"
    assert half.image.key == plain.image.key.replace("glyph#", "glyph-bf16#")
    for task in ("few_shot", "continual"):
        assert find_recipes(task, "coop", "glyph-bf16") == find_recipes(task, "coop", "glyph") != []
    assert find_recipes("few_shot", "vpt", "glyph-vit-bf16") == find_recipes("few_shot", "vpt", "glyph-vit")
    assert choose_threads("glyph-vit-bf16") == 1
    with pytest.raises(ValueError, match="expected a known form, got 'pixels-bf16'"):
        vlprompt.load("pixels-bf16")


def test_features_on_disk_are_not_shared(tmp_path):
    pixels = torch.rand(3, 3, 32, 32)
    found = []
    for name in ("glyph", "glyph-bf16", "glyph", "glyph-bf16"):
        with pytest.warns(UserWarning, match="bfloat16") if "bf16" in name else torch.no_grad():
            clip = vlprompt.load(name, cache_folder=tmp_path)
        found.append(clip.image(images(pixels)))
        clip.image.feature_cache.flush()
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])


def test_image_towers_of_timm_and_their_lower_parts():
    with pytest.warns(UserWarning, match="computed in bfloat16"):
        half = vlprompt.load(TIMM.format("-bf16"))
    lower, _ = half.split_at(2)
    assert lower.feature_dtype == torch.bfloat16
    assert describe_missing_weights(TIMM.format("-bf16")) == ""
    with pytest.raises(ValueError, match="expected a model of open_clip, got 'ViT-B-17'"):
        describe_missing_weights("open_clip-bf16:ViT-B-17/openai")
