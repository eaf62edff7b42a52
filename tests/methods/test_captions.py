"""The captions of a lesson: with those of single classes, from a file in place of images, and their features."""

import pytest
import torch
from captions_of_animals import split_of, write

from vlprompt import methods as m
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.methods._captions import CaptionFeatures, CaptionSettings


def test_captions_of_single_classes_are_added():
    settings = CaptionSettings(None, "{names}", "{name}", ["a {name}", "the {name}"], 2)
    split, note = settings.build(split_of([(0, 0, 0, 0), (0, 1, 0, 0)]))
    texts = [item.fields["text"] for item in split.items]
    assert len(texts) == 1 + 2 * 4 + 2 * 4
    assert texts[0] == "hot dog"
    assert {row for text, row in zip(texts, split.labels, strict=True) if "glass" in text} == {(0, 0, 1, 0)}
    assert note == "1 of 2 items without a known label have no caption"
    with pytest.raises(ValueError, match=r"^method\.captions: expected captions to learn from, got none"):
        CaptionSettings(None, "{names}", "{name}", None, 0).build(split_of([(0, 0, 0, 0)]))


def test_features_of_captions(tiny):
    captions = ["a cat", "a photo of a dog and a cat.", "a cat", "dogs"]
    features = CaptionFeatures(tiny, captions)
    pooled, rows = features.read(["dogs", "a photo of a dog and a cat.", "something else"])
    for i, caption in enumerate(["dogs", captions[1], "something else"]):
        alone = tiny.text([caption], output="rows")[0, 0]
        assert torch.allclose(pooled[i], tiny.text([caption])[0, 0], atol=1e-6)
        assert torch.allclose(rows[i, : len(alone)], alone, atol=1e-6)
        assert not rows[i, len(alone) :].any()
    assert torch.equal(features.read(["dogs"])[0][0], pooled[0])  # whatever the batch


def train(method, lesson):
    method.begin_lesson(lesson, torch.Generator().manual_seed(0))
    return [step.terms for step in fit(method, lesson, TrainConfig(epochs=1, batch_size=4, warmup=0))]


def test_a_file_is_learned_from_in_place_of_images(tiny, tmp_path):
    path = write(tmp_path / "captions.txt", "a dog and a cat", "a glass", "hot dogs", "nothing of interest")
    lesson = Lesson(split_of([0, 1]))
    method = m.TaIDPT(tiny, str(path), n_ctx=2, template=None, repeats=0)
    assert method.uses == ("captions",)
    assert m.TaIDPT(tiny).uses == ()
    [terms] = train(method, lesson)
    assert set(terms) == {"global", "local"}
    assert method.clipped_settings["method.captions"] == "1 captions that name no class are left out"
    assert len(method.training_lesson(lesson).train) == 3


def test_another_loss_would_change_nothing(tiny):
    lesson = Lesson(split_of([0, 1]))
    method = m.TaIDPT(tiny, n_ctx=2, template=None)
    method.begin_lesson(lesson, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"^train\.loss=gce: expected a method that learns from labels .*, got TaIDPT"):
        list(fit(method, lesson, TrainConfig(epochs=1, batch_size=4, loss="gce")))
