"""The search for ATPrompt's words: it finds what tells classes apart on validation images, and sees no others."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vlprompt import methods as m
from vlprompt.core.method import Output
from vlprompt.core.stage import Lesson
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.searches import attributes
from vlprompt.experiments.searches.attributes import list_combinations, search_attributes
from vlprompt.methods.atprompt import ATPrompt
from vlprompt.tasks.few_shot import FewShot

WORDS = ("color", "shape", "size")


@pytest.fixture(scope="module")
def lesson():
    [stage] = FewShot("digits", 2).stages()
    return replace(stage.lesson, val=stage.lesson.val or stage.lesson.train)


@pytest.fixture
def mixture(golden_clip, lesson):
    prompts = [ATPrompt(m.CoOp(golden_clip, 2), words) for words in list_combinations(WORDS[:2])]
    mixture = attributes._Mixture(prompts, lesson.val, 8, 0.02, 1)
    mixture.begin_lesson(lesson, torch.Generator().manual_seed(0))
    return mixture


def test_combinations():
    assert list_combinations(WORDS) == [
        *(("color",), ("shape",), ("size",), ("color", "shape"), ("color", "size"), ("shape", "size")),
        WORDS,
    ]
    for words in ((), ("a", "a"), tuple("abcdefg")):
        with pytest.raises(ValueError, match=r"^words: expected 1 to 6 different words, got \["):
            list_combinations(words)


def test_the_loss_is_that_of_the_weighted_logits(mixture, lesson):
    batch = next(lesson.train.batches(6))
    mixture.weights.data.copy_(torch.tensor([0.3, -0.2, 0.9]))
    fixed = mixture.precompute(batch.names)
    terms, out = mixture.loss_terms(batch, fixed)
    shares = torch.tensor([0.3, -0.2, 0.9]).softmax(0)
    each = [p(batch.inputs, p.prepare(batch.names, f)).logits for p, f in zip(mixture.prompts, fixed, strict=True)]
    twin = sum(share * logits for share, logits in zip(shares, each, strict=True))
    assert torch.allclose(out.logits, twin, atol=1e-5)
    assert torch.allclose(terms["ce"][0], F.cross_entropy(twin, batch.labels), atol=1e-5)
    terms["ce"][0].backward()
    assert mixture.weights.grad is None  # the prompts' step leaves them
    assert all(p.grad is not None for p in mixture.parameters())


def test_steps_of_the_weights_are_adams_on_validation_images(mixture):
    before = {name: p.clone() for name, p in mixture.named_parameters()}
    weights = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([weights], 0.02, (0.5, 0.999))
    for step in (1, 2, 3):
        batch = mixture.draw_validation_batch(step)
        with torch.no_grad():
            pairs = zip(mixture.prompts, mixture.precompute(batch.names), strict=True)
            each = torch.stack([p(batch.inputs, p.prepare(batch.names, fixed)).logits for p, fixed in pairs])
        optimizer.zero_grad()
        F.cross_entropy((weights.softmax(0)[:, None, None] * each).sum(0), batch.labels).backward()
        optimizer.step()
        mixture.end_step(step, 10)
    assert torch.allclose(mixture.weights, weights, atol=1e-6)
    assert mixture.weights.abs().max() > 0.01
    assert all(torch.equal(p, before[name]) for name, p in mixture.named_parameters())


def test_validation_images_are_drawn_anew(mixture, lesson):
    keys = {item.key for item in lesson.val.items}
    drawn = [mixture.draw_validation_batch(step).inputs.keys for step in (1, 2)]
    assert drawn[0] != drawn[1]
    assert {key for batch in drawn for key in batch} <= keys
    assert drawn[0] == mixture.draw_validation_batch(1).inputs.keys


def test_the_search_is_a_function_of_its_seed_and_moves_the_weights(golden_clip, lesson):
    config = TrainConfig(epochs=2, batch_size=10)

    def search(seed):
        return search_attributes(lambda: m.CoOp(golden_clip, 2), lesson, WORDS[:2], config, seed=seed)

    weights = search(1)
    assert set(weights) == {("color",), ("shape",), ("color", "shape")}
    assert sum(weights.values()) == pytest.approx(1)
    assert list(weights.values()) == sorted(weights.values(), reverse=True)
    assert max(weights.values()) > 0.335
    assert search(1) == weights != search(2)


def test_a_combination_that_answers_right_wins(mixture, lesson, monkeypatch):
    """The weights go to the prompt whose logits are right on validation images."""
    labels = {item.key: label for item, label in zip(lesson.val.items, lesson.val.labels, strict=True)}

    def answer(self, inputs, prepared):
        right = F.one_hot(torch.tensor([labels[key] for key in inputs.keys]), 10).float()
        return Output(right * (5.0 if self.attributes == ("shape",) else -5.0))

    monkeypatch.setattr(ATPrompt, "forward", answer)
    for step in range(30):
        mixture.end_step(step, 30)
    assert mixture.weights.argmax() == 1
    assert mixture.weights[1] > mixture.weights[0] + 0.5


def test_without_validation_images_there_is_no_search(golden_clip, lesson):
    empty = Lesson(lesson.train)
    with pytest.raises(ValueError, match=r"^lesson: expected validation images, on which the words are"):
        search_attributes(lambda: m.CoOp(golden_clip, 2), empty, WORDS)


def test_the_command_prints_a_value_of_the_setting(type_in):
    words = ("attributes", "digits", "color,shape", "--shots", "1", "--backbone", "glyph/random", "train.epochs=1")
    code, text = type_in(*words)
    assert code == 0, text
    assert "3 combinations of color, shape; coop, 1 shot, seed 1" in text
    assert "vlprompt run atprompt digits --shots 1 method.method=coop 'method.attributes=[" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("color,color",), "words: expected 1 to 6 different words, got ['color', 'color']"),
        ((",",), "words: expected 1 to 6 different words, got []"),
        (
            ("color", "--method", "vpt"),
            "method.method: expected a method with soft tokens at layer 0 of the",
        ),
        (("color", "color=red"), "color"),
    ],
)
def test_bad_words_are_one_error(type_in, words, expected):
    code, text = type_in("attributes", "digits", *words, "--shots", "1", "--backbone", "glyph/random")
    assert code == 2, text
    assert expected in text
