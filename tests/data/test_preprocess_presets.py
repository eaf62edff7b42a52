"""Looks by name against torchvision's transforms put together by hand, on real photographs."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from torchvision.transforms import functional as T

from vlprompt.config.resolve import load_layered_config
from vlprompt.core.images import Augmentation, Preprocessing
from vlprompt.data.images.decoding import preprocess_image
from vlprompt.data.images.preprocess_presets import list_presets, resolve_preprocessing

TOWER = Preprocessing((32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalize((0.5,) * 3, (0.5,) * 3)
CLIP = Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
LINEAR, CUBIC = InterpolationMode.BILINEAR, InterpolationMode.BICUBIC
BY_HAND = {
    "vpt_vtab": [ToTensor(), Resize((224, 224), LINEAR, antialias=False), IMAGENET],
    "vpt_fgvc": [Resize(256, LINEAR), CenterCrop(224), ToTensor(), IMAGENET],
    "convpass_vtab": [Resize((224, 224), CUBIC), ToTensor(), IMAGENET],
    "ssf_vtab": [Resize(224, CUBIC), CenterCrop(224), ToTensor(), HALF],
    "l2p": [Resize(256, CUBIC), CenterCrop(224), ToTensor()],
    "l2p_jax": [ToTensor(), Resize((256, 256), LINEAR, antialias=False), CenterCrop(224)],
    "imagenet": [Resize(256, LINEAR), CenterCrop(224), ToTensor(), IMAGENET],
    "openai": [Resize(224, CUBIC), CenterCrop(224), ToTensor(), CLIP],
}


@pytest.fixture(scope="module")
def photos():
    """Wide, tall and square, larger and smaller than what is cut out."""
    from sklearn.datasets import load_sample_images

    whole = [Image.fromarray(array) for array in load_sample_images().images]
    return [whole[0], whole[1].crop((200, 0, 430, 427)), whole[0].crop((0, 0, 300, 300)), whole[1].crop((9, 9, 90, 70))]


@pytest.mark.parametrize("key", ["size", "mean", "std", "interpolation", "antialias", "resize", "crop"])
def test_a_field_without_a_value_is_refused(key):
    with pytest.raises(ValueError, match=rf"preprocess.{key}: expected a value, got null. Leave it out"):
        resolve_preprocessing({key: None}, TOWER)


def test_fields_change_a_preset_and_do_not_replace_it():
    def resolve(*overrides):
        return load_layered_config("vpt", overrides=["task.dataset=digits", *overrides]).values["preprocess"]

    assert resolve("preprocess=vpt_vtab", "preprocess.size=32") == {"preset": "vpt_vtab", "size": 32}
    assert resolve("preprocess=vpt_vtab", "preprocess=l2p") == "l2p"
    assert resolve("preprocess=vpt_vtab", "preprocess.size=32", "preprocess=l2p") == {"preset": "l2p", "size": 32}
    assert resolve("preprocess.size=32", "preprocess=l2p") == {"preset": "l2p", "size": 32}
    assert resolve("preprocess.size=32", "preprocess=null") is None
    assert resolve("preprocess={preset: l2p, size: 8}") == {"preset": "l2p", "size": 8}
    assert resolve("preprocess.size=32", "preprocess={crop: 0.5}") == {"size": 32, "crop": 0.5}
    assert resolve("preprocess.size=32", "preprocess.preset=l2p") == {"size": 32, "preset": "l2p"}


@pytest.mark.parametrize("name", list_presets())
def test_a_preset_is_what_its_authors_did(name, photos):
    transform = Compose(BY_HAND[name])
    for photo in photos:
        torch.testing.assert_close(
            preprocess_image(photo, resolve_preprocessing(name, TOWER)), transform(photo), rtol=0, atol=1e-6
        )


def test_presets_differ_by_more_than_noise(photos):
    made = [
        preprocess_image(photos[0], resolve_preprocessing(name, TOWER)) for name in list_presets() if name != "imagenet"
    ]
    for i, one in enumerate(made):
        assert all((one - other).abs().max() > 0.05 for other in made[:i])


def test_fields_lie_over_the_towers_own_look():
    assert resolve_preprocessing({}, TOWER) == TOWER
    told = resolve_preprocessing({"preset": "vpt_vtab", "size": [48, 64], "mean": 0.5, "crop": 1}, TOWER)
    assert (told.size, told.mean, told.std) == ((48, 64), (0.5, 0.5, 0.5), (0.229, 0.224, 0.225))
    assert (told.interpolation, told.resize, told.antialias, told.crop) == ("bilinear", "squash", False, 1.0)
    assert resolve_preprocessing({"resize": "squash", "size": 16}, TOWER) == Preprocessing(
        (16, 16), TOWER.mean, TOWER.std, resize="squash"
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("vpt_vtb", "preprocess: expected a preset, got 'vpt_vtb'; did you mean 'vpt_vtab'"),
        ({"preset": 3}, "preprocess: expected a preset, got 3; the choices are convpass_vtab"),
        ({"sizes": 224}, "preprocess: unknown key 'sizes'; did you mean 'size'"),
        ({"size": 0}, r"preprocess: size: expected a positive whole number of pixels or \[height, width\], got 0"),
        ({"size": [224]}, r"size: expected \[height, width\], got \[224\]"),
        ({"interpolation": "linear"}, "interpolation: expected bicubic or bilinear, got 'linear'"),
        ({"resize": True}, "resize: expected shortest or squash, got True"),
        ({"antialias": "no"}, "antialias: expected true or false, got 'no'"),
        ({"antialias": 1}, "antialias: expected true or false, got 1"),
        ({"crop": 1.1}, "crop: expected the fraction that is cut out, above 0 and up to 1, got 1.1"),
        ({"crop": "all"}, "crop: expected the fraction that is cut out, above 0 and up to 1, got 'all'"),
        ({"mean": [0.5, 0.5]}, r"mean: expected a number or one for each of 3 channels, got \[0.5, 0.5\]"),
        ({"mean": float("nan")}, "mean: expected a number or one per channel, got nan"),
        ({"std": [1, 1, 0]}, r"std: expected a number above 0 or one per channel, got \[1, 1, 0\]"),
    ],
)
def test_a_wrong_look(given, told):
    with pytest.raises(ValueError, match=told):
        resolve_preprocessing(given, TOWER)


def test_a_shifted_view_is_a_place_of_the_resized_picture(photos):
    """VPT on FGVC, at a quarter of its size: the short side to 64, 56 out of it at random, mirrored or not."""
    shown = Preprocessing((56, 56), interpolation="bilinear", crop=0.875)
    whole = ToTensor()(Resize(64, LINEAR)(photos[0]))
    seen = set()
    for seed in range(12):
        view = preprocess_image(photos[0], shown, Augmentation("shift-flip", seed))
        assert view.equal(preprocess_image(photos[0], shown, Augmentation("shift-flip", seed)))
        found = [
            (top, left, mirrored)
            for mirrored in (False, True)
            for top in range(whole.shape[1] - 55)
            for left in range(whole.shape[2] - 55)
            if (T.hflip(view) if mirrored else view).equal(whole[:, top : top + 56, left : left + 56])
        ]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 9
    assert {mirrored for _, _, mirrored in seen} == {False, True}
    assert max(top for top, _, _ in seen) > 4 > min(top for top, _, _ in seen)
    assert max(left for _, left, _ in seen) > 20  # along the whole of the long side, of 96
    assert preprocess_image(photos[2], Preprocessing((32, 32)), Augmentation("shift-flip", 1)).shape == (3, 32, 32)


def test_looks_are_listed(type_in):
    status, said = type_in("list", "preprocess")
    assert status == 0
    assert all(name in said for name in list_presets())
    assert "VPT on VTAB-1k: TensorFlow's resize to a square" in said
