"""Captions with labels: files of a user, what is written from the labels of images, their features and their loss."""

import json

import pytest
import torch

from vlprompt import methods as m
from vlprompt.core.batch import Split
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.methods._captions import (
    CaptionFeatures,
    CaptionSettings,
    compute_ranking_loss,
    join_words,
    read_captions,
    write_captions,
)

NAMES = ("dog", "hot_dog", "glass", "cat")


def split_of(labels, names=NAMES):
    items = tuple(ImageItem(f"{i}", lambda look, view: torch.zeros(3, 2, 2), f"{i}") for i in range(len(labels)))
    return Split(items, tuple(labels), names)


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_names_in_captions(tmp_path):
    """Long names first; a plural counts, a part of a word and another class inside of a name do not."""
    path = write(
        tmp_path / "captions.txt",
        "A hot dog on a plate",
        "Two DOGS, many glasses",
        "",
        "a hot dog beside a dog",
        "a hotdog in a category",
        "cats!",
    )
    file = read_captions(path, NAMES)
    assert [row for _, row in file.rows] == [(0, 1, 0, 0), (1, 0, 1, 0), (1, 1, 0, 0), (0, 0, 0, 1)]
    assert [text for text, _ in file.rows][:2] == ["A hot dog on a plate", "Two DOGS, many glasses"]
    assert file.n_dropped == 1


def test_labels_in_a_file(tmp_path):
    rows = [{"caption": "a pet", "labels": ["Dog", "hot dog"]}, {"caption": "a cat"}, {"caption": "?", "labels": []}]
    file = read_captions(write(tmp_path / "c.jsonl", *map(json.dumps, rows)), NAMES)
    assert file.rows == [("a pet", (1, 1, 0, 0)), ("a cat", (0, 0, 0, 1))]
    assert file.n_dropped == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"caption": "a", "labels": ["spoon"]}',
            "line 1: labels: expected classes of the lesson, got 'spoon'. Correct",
        ),
        ('{"text": "a"}', 'line 1: expected {"caption": text}, perhaps with "labels": .class names., got'),
        ("no json", 'line 1: expected {"caption": text}, perhaps with "labels"'),
        ('{"caption": "a", "labels": [3]}', 'line 1: expected {"caption": text}, perhaps with "labels"'),
        ('{"caption": "a bird"}', "expected captions that name a class, such as 'dog', got 1 that name none. Write"),
    ],
)
def test_bad_files(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read_captions(write(tmp_path / "c.jsonl", line), NAMES)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"^method\.captions: expected a file of captions, got .* does not exist"):
        read_captions(tmp_path / "none.txt", NAMES)


def test_captions_are_written_from_labels():
    train = split_of([(1, 1, -1, 0), (0, 0, 0, 0), (-1, 0, 0, 1)])
    rows = write_captions(train, "a photo of {names}.", "a {name}")
    assert rows[0][0] in ("a photo of a dog and a hot dog.", "a photo of a hot dog and a dog.")
    assert rows[0][1] == (1, 1, -1, 0)  # what is unknown stays unknown
    assert rows[1:] == [("a photo of a cat.", (-1, 0, 0, 1))]
    assert rows == write_captions(train, "a photo of {names}.", "a {name}")
    assert write_captions(split_of([2]), "{names}", "{name}") == [("glass", (0, 0, 1, 0))]
    assert [join_words(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    with pytest.raises(ValueError, match=r"^method\.caption_template: expected a place \{names\}, got 'a photo'"):
        write_captions(train, "a photo", "a {name}")


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


def test_the_ranking_loss_is_its_sum_over_pairs():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 6, generator=generator, dtype=torch.double).requires_grad_()
    labels = torch.randint(-1, 2, (5, 6), generator=generator)
    pairs = [
        max(0.0 * scores[0, 0], 1 - scores[n, i] + scores[n, j])
        for n in range(5)
        for i in range(6)
        for j in range(6)
        if labels[n, i] == 1 and labels[n, j] == 0
    ]
    expected = torch.stack(pairs).sum() / 5
    mine = compute_ranking_loss(scores, labels)
    assert float((mine - expected).detach().abs()) < 1e-12
    [found], [twin] = (torch.autograd.grad(x, scores, retain_graph=True) for x in (mine, expected))
    assert float((found - twin).abs().max()) < 1e-11


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
