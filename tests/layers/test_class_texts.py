"""Texts of classes."""

import warnings

import pytest
import torch
from PIL import Image

from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.prompt import Prompt
from vlprompt.layers.class_texts import encode_class_texts, fill_class_texts

EQUAL_TEXTS = {
    "case": ("dog", "Dog"),
    "underscore": ("fire_truck", "fire truck"),
    "spaces": ("ice  cream", "ice cream"),
}


@pytest.mark.parametrize("case", EQUAL_TEXTS)
def test_classes_whose_texts_are_the_same_are_warned_of(case):
    clip, names = build_tiny_clip(), ("cat", *EQUAL_TEXTS[case])
    with pytest.warns(UserWarning, match=r"^text: .* Rename one of them"):
        encode_class_texts(clip, names, None)
    with pytest.warns(UserWarning, match=r"^text: .* Rename one of them"):
        clip.text(fill_class_texts("{ctx} {name}.", names, 2), Prompt(tokens={0: torch.zeros(1, 2, clip.text.dim)}))


def test_a_class_twice_and_other_classes_are_not_warned_of():
    clip = build_tiny_clip()
    encode_class_texts(clip, ("cat", "cat", "cats", "a cat", "dog"), None)


def test_the_warning_comes_on_the_command_line_and_again_with_cached_features(type_in, tmp_path):
    for i, name in enumerate(("dog", "Dog")):
        (tmp_path / "few" / name).mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (8, 8), (200 * i + 9 * j,) * 3).save(tmp_path / "few" / name / f"{j}.png")
    for folder in ("a", "b"):
        words = ["run", "zero_shot", tmp_path / "few", "--shots", "1", "--backbone", "glyph/random"]
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # which the suite has as errors
            code, text = type_in(*words, "-o", tmp_path / folder)
        assert code == 0
        assert "classes 'Dog' and 'dog' have the same text features" in text


def test_several_places_of_soft_tokens(tiny):
    template, text = "{2} color {3} shape {ctx} {name}.", tiny.text
    [filled] = fill_class_texts(template, ["dog"], 4)
    assert filled == "{2} color {3} shape {4} dog."
    words = text.token_embeddings[torch.tensor(text.tokenizer.encode("a photo of a big red"))]
    found = text(["{2} of a {2} {2} dog."], Prompt({0: words[torch.tensor([0, 1, 4, 5, 4, 5])][None]}))
    torch.testing.assert_close(found, text(["a photo of a big red big red dog."]))
