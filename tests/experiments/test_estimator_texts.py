"""PromptTextClassifier: the training of `vlprompt run` on texts and labels as they are in Python."""

import pickle

import numpy as np
import pytest
import small_models
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

import vlprompt
from vlprompt.cli.app import main
from vlprompt.experiments.learned.state import read_learned_state
from vlprompt.tasks import Text

TEXTS = ["great fun", "warm and funny", "well played", "terrible", "boring and long", "the price of oil"] * 2
LABELS = np.array(["good", "good", "good", "bad", "bad", "bad"] * 2)
SHORT = {"train__epochs": 1, "method__n_tokens": 2}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return f"hf:{small_models.written('llama', tmp_path_factory.mktemp('llama'))}"


@pytest.fixture(scope="module")
def fitted(backbone):
    return vlprompt.PromptTextClassifier(backbone=backbone, **SHORT).fit(TEXTS, LABELS)


def test_fit_learns_the_bits_that_a_run_learns(backbone, tmp_path):
    table = tmp_path / "texts.csv"
    rows = [f"{text} {k},{label}" for k, (text, label) in enumerate(zip(TEXTS * 2, [*LABELS] * 2, strict=True))]
    table.write_text("\n".join(["text,label", *rows]))
    with pytest.raises(SystemExit, match="0"):
        main(["run", "prompt_tuning", str(table), "--backbone", backbone, "--shots", "2", "train.epochs=1",
              "method.n_tokens=2", "--out", str(tmp_path / "runs")])  # fmt: skip
    [folder] = [path.parent for path in (tmp_path / "runs").rglob("result.json")]
    train = Text(str(table), 2).lesson.train
    texts, labels = [dict(item.fields) for item in train.items], [str(train.names[label]) for label in train.labels]
    estimator = vlprompt.PromptTextClassifier(backbone=backbone, **SHORT).fit(texts, labels)
    run = read_learned_state(folder)
    assert all(torch.equal(tensor, estimator.learned_state_.tensors[name]) for name, tensor in run.tensors.items())
    assert run.text_protocol == estimator.learned_state_.text_protocol
    assert run.config["train"] == estimator.learned_state_.config["train"]


def test_answers_copies_and_scores(fitted, backbone):
    probabilities = fitted.predict_proba(TEXTS[:4])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert fitted.predict(np.array(TEXTS[:4])).tolist() == fitted.classes_[probabilities.argmax(1)].tolist()
    assert fitted.get_prompt().predict(TEXTS[:4]) == fitted.predict(TEXTS[:4]).tolist()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(TEXTS[:4]), probabilities)
    other = vlprompt.PromptTextClassifier("nearest_mean", backbone)
    assert cross_val_score(other, TEXTS, LABELS, cv=2, error_score="raise").shape == (2,)


def test_fields_and_templates(backbone):
    spaced = vlprompt.PromptTextClassifier("nearest_mean", backbone).fit([{"a b": text} for text in TEXTS], LABELS)
    assert spaced.predict([{"a b": text} for text in TEXTS]).shape == (12,)
    pairs = [{"title": text, "body": "x"} for text in TEXTS]
    estimator = vlprompt.PromptTextClassifier("nearest_mean", backbone).fit(pairs, LABELS)
    assert estimator.learned_state_.text_protocol["plain_template"] == "{title}{sep}{body}"
    short = (
        clone(estimator).set_params(task__plain_template="{title}", task__truncation_side="start").fit(pairs, LABELS)
    )
    assert (short.predict_proba(pairs) != estimator.predict_proba(pairs)).any()
    assert short.learned_state_.build_text_items(pairs)[0].truncation_side == "start"
    one, other = short.predict_proba([{"title": "terrible", "body": body} for body in ("x", "y")])
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"text 1: expected the fields title, body, got title. Add 'body'"):
        estimator.predict([{"title": "terrible"}])
    with pytest.raises(ValueError, match="text 1: expected the fields title, body, got a text without fields"):
        estimator.predict(["terrible"])


def test_it_is_saved_without_the_path_of_its_backbone(fitted, backbone, tmp_path):
    fitted.save(tmp_path / "model")
    assert backbone.removeprefix("hf:").rpartition("/")[0] not in (tmp_path / "model" / "estimator.json").read_text()
    loaded = vlprompt.PromptTextClassifier.load(tmp_path / "model", backbone=backbone)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    with pytest.raises(ValueError, match=r"expected where the weights of .* are on this machine, got none"):
        vlprompt.PromptTextClassifier.load(tmp_path / "model").predict(TEXTS)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("great", LABELS), {}, "texts: expected a sequence of texts, got one text"),
        (([], []), {}, "texts: expected at least one text, got none"),
        ((["good", " "], LABELS[:2]), {}, "text 2: expected the fields text, got nothing"),
        ((["good", 5], LABELS[:2]), {}, "text 2: expected a text, or a mapping of fields, got a int"),
        ((b"great", LABELS), {}, "texts: expected a list or an array of texts, got a bytes"),
        ((set(TEXTS), LABELS[:6]), {}, "texts: expected a list or an array of texts, got a set"),
        ((None, LABELS), {}, "texts: expected a list or an array of texts, got a NoneType"),
        (([{"a": "x"}, {"a": 5}], LABELS[:2]), {}, "text 2: expected a text in the field 'a', got 5"),
        (([{"a b{": "x"}] * 2, LABELS[:2]), {}, "texts: expected fields whose names a template can show, got 'a b{'"),
        (([{}] * 2, LABELS[:2]), {}, "texts: expected fields whose names a template can show, got none"),
        (
            (["good", "\ud800"], LABELS[:2]),
            {},
            "text 2: expected a text in Unicode, got half of a character pair at place 1",
        ),
        ((TEXTS, LABELS[:2]), {}, "labels: expected one for each of the 12 texts, got 2"),
        ((TEXTS, LABELS), {"backbone": ""}, "PromptTextClassifier: backbone: expected a name, got ''"),
        (
            (TEXTS, LABELS),
            {"backbone": "glyph", "method": "linear"},
            "expected images for glyph, which is an image tower",
        ),
        (
            (TEXTS, LABELS),
            {"task__prompt_template": "{title} {mask}"},
            "template: expected fields of the texts, got {title}",
        ),
        ((TEXTS, LABELS), {"task__max_test_texts": 3}, "task__max_test_texts: expected one of seed, shots"),
    ],
)
def test_what_can_not_be_learned_from_is_refused(backbone, arguments, settings, message):
    estimator = vlprompt.PromptTextClassifier(backbone=backbone, **SHORT)
    if settings.get("method"):
        estimator = vlprompt.PromptTextClassifier(backbone=backbone)
    with pytest.raises(ValueError, match=message):
        estimator.set_params(**settings).fit(*arguments)


def test_texts_have_no_lessons(fitted):
    with pytest.raises(AttributeError, match="partial_fit: expected a method for streams of images"):
        fitted.partial_fit(TEXTS, LABELS)
