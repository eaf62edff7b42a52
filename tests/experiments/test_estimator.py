"""PromptClassifier: the training of `vlprompt run`, on images and labels as they are in Python."""

import contextlib
import copy
import json
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

import vlprompt
from vlprompt.cli.app import main
from vlprompt.core.class_names import class_ids
from vlprompt.experiments.estimator.training import _load_cached
from vlprompt.experiments.learned.decision import Decision
from vlprompt.experiments.learned.state import read_learned_state
from vlprompt.tasks import Continual, FewShot

DIGITS = load_digits()
IMAGES, LABELS = (DIGITS.images * (255 / 16)).round().astype(np.uint8)[:120], DIGITS.target[:120]
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHORT = {"train__epochs": 1, "task__augment": "none", "task__shots": 1}


def prompt_classifier(method="coop", **settings):
    return vlprompt.PromptClassifier(method, "glyph/random", **{**SHORT, **settings})


@pytest.fixture(scope="module")
def fitted():
    return prompt_classifier().fit(IMAGES, LABELS)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    with pytest.raises(SystemExit, match="0"):
        main(["run", "coop", "digits", "--shots", "4", "train.epochs=2", "--out", str(root)])
    [folder] = [path.parent for path in root.rglob("result.json")]
    return folder


def same_state(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_fit_learns_the_bits_that_a_run_learns(run_folder):
    lesson = FewShot("digits", 4, seed=1).lesson
    estimator = vlprompt.PromptClassifier("coop", train__epochs=2, task__augment="none")
    estimator.fit(lesson.train.items, lesson.train.labels, class_names=lesson.train.names)
    state, run = estimator.learned_state_, read_learned_state(run_folder)
    assert same_state(state.tensors, run.tensors)
    for key in ("backbone", "method", "train", "seed"):
        assert state.config[key] == run.config[key]
    assert not same_state(clone(estimator).set_params(seed=2).fit(lesson.train.items, lesson.train.labels)
                          .learned_state_.tensors, run.tensors)  # fmt: skip


def test_shots_are_drawn_and_augmented_as_in_a_run(tmp_path):
    data = FewShot("digits", None, seed=3).data
    with pytest.raises(SystemExit, match="0"):
        main(["run", "coop", "digits", "--shots", "1", "--seed", "3", "--backbone", "glyph/random", "train.epochs=2",
              "task.augment=crop-flip", "--out", str(tmp_path)])  # fmt: skip
    [folder] = [path.parent for path in tmp_path.rglob("result.json")]
    estimator = prompt_classifier(seed=3, train__epochs=2, task__augment="crop-flip")
    estimator.fit(data.train.items, data.train.labels, class_names=data.train.names)
    assert same_state(estimator.learned_state_.tensors, read_learned_state(folder).tensors)


def test_lessons_learn_the_bits_that_a_stream_learns(tmp_path):
    settings = {"method__projection_dim": 50}
    with pytest.raises(SystemExit, match="0"):
        main(["run", "ranpac", "digits", "--task", "continual", "--shots", "2", "--backbone", "glyph/random",
              "method.projection_dim=50", "task.with_val=false", "task.stages=5", "--out", str(tmp_path)])  # fmt: skip
    [folder] = [path.parent for path in tmp_path.rglob("result.json")]
    estimator = vlprompt.PromptClassifier("ranpac", "glyph/random", task__stages=5, task__augment="none", **settings)
    for lesson in Continual("digits", 5, shots=2, with_val=False).lessons():
        train = lesson.train
        ids = np.array(class_ids(train.names))[list(train.labels)]
        estimator.partial_fit(train.items, ids, class_names=dict(zip(class_ids(train.names), train.names, strict=True)))
        estimator = pickle.loads(pickle.dumps(estimator))  # the backbone is loaded anew, the lessons go on
    assert same_state(estimator.learned_state_.tensors, read_learned_state(folder).tensors)
    assert list(estimator.classes_) == [str(digit) for digit in range(10)]
    assert list(map(str, estimator.class_names_)) == list(NAMES)


def test_all_items_are_used_unless_shots_are_set():
    plain = vlprompt.PromptClassifier("nearest_mean", "glyph/random").fit(IMAGES, LABELS).learned_state_
    lesson = vlprompt.PromptClassifier("nearest_mean", "glyph/random").partial_fit(IMAGES, LABELS).learned_state_
    few = prompt_classifier("nearest_mean", task__shots=2).fit(IMAGES, LABELS).learned_state_
    assert (plain.config["task"]["shots"], few.config["task"]["shots"]) == (None, 2)
    assert same_state(plain.tensors, lesson.tensors)
    assert not same_state(plain.tensors, few.tensors)


@pytest.mark.parametrize(("n", "epochs"), [(1, 50), (3, 100), (16, 200), (30, 200)])
def test_a_recipe_by_shots_takes_the_nearest_number_below(n, epochs):
    images, labels = np.repeat(IMAGES[:2], n, 0), [0] * n + [1] * n
    with pytest.raises(ValueError, match="stop here"):
        Resolved("coop", "timm:none", seed=n).fit(images, labels)
    assert Resolved.config.train["epochs"] == epochs


class Resolved(vlprompt.PromptClassifier):
    """An estimator that only resolves its settings."""

    def _resolve(self, *arguments):
        Resolved.config = super()._resolve(*arguments)
        raise ValueError("stop here")


def test_answers_are_those_of_the_learned_prompt(fitted):
    probabilities, logits = fitted.predict_proba(IMAGES[:9]), fitted.decision_function(IMAGES[:9])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), probabilities)
    np.testing.assert_allclose(fitted.get_prompt().predict_proba(IMAGES[:9]), probabilities, atol=1e-6)
    assert fitted.predict(IMAGES[:9]).tolist() == probabilities.argmax(1).tolist()
    assert fitted.get_prompt().predict(IMAGES[:9]) == [str(label) for label in fitted.predict(IMAGES[:9])]
    assert fitted.score(IMAGES[:9], LABELS[:9]) == np.mean(fitted.predict(IMAGES[:9]) == LABELS[:9])
    assert (fitted.n_features_in_, list(fitted.classes_)) == (64, list(range(10)))


def test_a_prompt_may_answer_unknown(fitted):
    prompt = fitted.get_prompt().with_decision(Decision(threshold=1.1))
    assert prompt.predict(IMAGES[:2]) == ["unknown", "unknown"]


@pytest.fixture(scope="module")
def with_threshold(fitted, tmp_path_factory):
    """Model folders whose threshold lies between the scores of some images; labels are strings, or numbers."""
    root = tmp_path_factory.mktemp("threshold")
    named = prompt_classifier().fit(IMAGES, np.array(NAMES)[LABELS])
    for name, estimator in (("named", named), ("numbered", fitted)):
        scores = estimator.predict_proba(IMAGES[:9]).max(1)
        estimator.learned_state_ = replace(
            estimator.learned_state_, decision=Decision(threshold=float(np.sort(scores)[4]))
        )
        estimator.save(root / name)
        estimator.learned_state_ = replace(estimator.learned_state_, decision=Decision())
    return root


def test_the_threshold_of_a_loaded_prompt_answers_unknown(with_threshold):
    named = vlprompt.PromptClassifier.load(with_threshold / "named")
    answers = named.predict(IMAGES[:9])
    assert answers.tolist() == named.get_prompt().predict(IMAGES[:9])
    assert answers.tolist().count("unknown") == 4
    assert named.predict_proba(IMAGES[:9]).shape == (9, 10)
    numbered = vlprompt.PromptClassifier.load(with_threshold / "numbered")
    with pytest.warns(
        UserWarning, match=r"expected labels that are strings .* 'unknown', got 0, so the threshold .* not"
    ):
        answers = numbered.predict(IMAGES[:9])
    assert answers.tolist() == numbered.predict_proba(IMAGES[:9]).argmax(1).tolist()
    assert numbered.get_prompt().predict(IMAGES[:9]).count("unknown") == 4


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "mode",
    [torch.inference_mode, torch.no_grad, default_dtype, lambda: torch.device("meta"),
     lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["inference", "no_grad", "float64", "device", "autocast"],
)  # fmt: skip
def test_modes_of_torch_around_it_change_nothing(fitted, mode):
    _load_cached.cache_clear()
    with mode():
        dtype = torch.get_default_dtype()
        inside = prompt_classifier().fit(IMAGES, LABELS)
        answers = inside.decision_function(IMAGES[:5])
        assert torch.get_default_dtype() == dtype
    assert same_state(inside.learned_state_.tensors, fitted.learned_state_.tensors)
    np.testing.assert_array_equal(answers, fitted.decision_function(IMAGES[:5]))
    prompt_classifier().fit(IMAGES, LABELS)  # on the backbone that was loaded inside


def test_the_two_classes_of_a_binary_problem_share_one_decision():
    few = LABELS < 2
    estimator = prompt_classifier("nearest_mean").fit(IMAGES[few], np.array(["no", "yes"])[LABELS[few]])
    decision = estimator.decision_function(IMAGES[few])
    assert decision.shape == (few.sum(),)
    assert (estimator.classes_[(decision > 0).astype(int)] == estimator.predict(IMAGES[few])).all()
    np.testing.assert_allclose(1 / (1 + np.exp(-decision)), estimator.predict_proba(IMAGES[few])[:, 1])


class Pairs:
    """A dataset of torchvision's kind."""

    classes = ("even", "odd")

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return Image.fromarray(IMAGES[index]), int(LABELS[index]) % 2


@pytest.mark.parametrize("kind", [str, float, bool, np.int8])
def test_labels_are_of_any_kind(kind):
    labels = np.array([kind(digit % 2) for digit in LABELS.tolist()])
    estimator = prompt_classifier("nearest_mean").fit(IMAGES, labels)
    assert estimator.classes_.dtype == labels.dtype
    assert [str(name) for name in estimator.class_names_] == [str(label) for label in np.unique(labels)]
    assert estimator.score(IMAGES, labels) > 0.5


def test_a_dataset_brings_labels_and_names():
    estimator = prompt_classifier("nearest_mean").fit(Pairs())
    assert (list(estimator.classes_), list(estimator.class_names_)) == ([0, 1], ["even", "odd"])
    assert estimator.score(Pairs()) == estimator.score(IMAGES, LABELS % 2) > 0.5


def test_class_names_are_a_list_or_a_mapping():
    listed = prompt_classifier("zero_shot").fit(IMAGES, LABELS, class_names=NAMES)
    mapped = prompt_classifier("zero_shot").fit(IMAGES, LABELS, class_names=dict(enumerate(NAMES)))
    plain = prompt_classifier("zero_shot").fit(IMAGES, LABELS)
    assert listed.class_names_ == mapped.class_names_ == NAMES
    np.testing.assert_array_equal(listed.predict_proba(IMAGES[:5]), mapped.predict_proba(IMAGES[:5]))
    assert np.abs(listed.predict_proba(IMAGES[:5]) - plain.predict_proba(IMAGES[:5])).max() > 1e-4
    other = prompt_classifier("zero_shot", template="the digit {name}.").fit(IMAGES, LABELS, class_names=NAMES)
    assert np.abs(listed.predict_proba(IMAGES[:5]) - other.predict_proba(IMAGES[:5])).max() > 1e-4


def test_validation_images_are_searched_on():
    labels = LABELS[:80]
    searched = {
        name: prompt_classifier("tip_adapter", **settings)
        .fit(IMAGES[:80], labels, validation=validation)
        .learned_state_.tensors["alpha_beta"]
        .tolist()
        for name, settings, validation in (
            ("none", {}, None),
            ("pair", {}, (IMAGES[80:], LABELS[80:])),
            ("fraction", {"validation_fraction": 0.2}, None),
        )
    }
    assert searched["none"] == [1.0, 1.0] != searched["pair"]
    assert searched["fraction"] != [1.0, 1.0]


def test_rows_of_pixels_have_a_shape():
    rows = DIGITS.data[:120] / 16
    flat = prompt_classifier("nearest_mean", image_shape=(8, 8), pixel_range=(0, 1)).fit(rows, LABELS)
    np.testing.assert_array_equal(
        flat.predict(rows), prompt_classifier("nearest_mean").fit(IMAGES, LABELS).predict(IMAGES)
    )
    with pytest.raises(ValueError, match="X has 63 features, but PromptClassifier is expecting 64"):
        flat.predict(rows[:, 1:])
    with pytest.raises(ValueError, match=r"image_shape: expected a shape \(H, W\) .* of 64 numbers, got \(8, 9\)"):
        flat.set_params(image_shape=(8, 9)).fit(rows, LABELS)


def test_the_range_of_floats_is_told_once_and_holds_for_later_images():
    bright, dark = IMAGES / 1.0, IMAGES[:5] / 1.0
    dark[dark > 1] = 1
    estimator = prompt_classifier("nearest_mean")
    with pytest.warns(UserWarning, match="took 0 for black and 255 for white in arrays that are not bytes") as caught:
        estimator.fit(bright, LABELS)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(
            estimator.predict_proba(dark), estimator.predict_proba(dark.round().astype(np.uint8))
        )
        estimator.set_params(pixel_range=(0, 255)).fit(bright, LABELS)
    with pytest.warns(UserWarning, match="took 0 for black and 1 for white"):
        estimator.set_params(pixel_range=None).fit(bright / 255, LABELS)
    with pytest.raises(ValueError, match=r"image 1: expected numbers of 0\.\.1, got 0\.\."):
        estimator.predict(bright)


def test_the_process_is_left_as_it_was():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        prompt_classifier("vpt", method__dropout=0.5).fit(IMAGES, LABELS).predict(IMAGES[:3])
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
    finally:
        torch.set_num_threads(threads)


def test_copies_hold_what_was_learned_and_no_backbone(fitted):
    wanted = fitted.decision_function(IMAGES[:5])
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted), copy.copy(fitted)):
        assert "_prompt" not in vars(other)
        np.testing.assert_array_equal(other.decision_function(IMAGES[:5]), wanted)
    assert len(pickle.dumps(fitted)) < 20_000


def test_an_estimator_is_saved_and_loaded(fitted, tmp_path):
    labelled = prompt_classifier("coop", method__n_ctx=2).fit(IMAGES, LABELS * 2)
    for name, estimator in (("plain", fitted), ("labelled", labelled)):
        estimator.save(tmp_path / name)
        loaded = vlprompt.PromptClassifier.load(tmp_path / name)
        assert (loaded.get_params(), loaded.classes_.tolist()) == (estimator.get_params(), estimator.classes_.tolist())
        np.testing.assert_array_equal(loaded.decision_function(IMAGES[:5]), estimator.decision_function(IMAGES[:5]))
        prompt = vlprompt.load_prompt(tmp_path / name)
        np.testing.assert_allclose(prompt.predict_proba(IMAGES[:5]), estimator.predict_proba(IMAGES[:5]), atol=1e-6)
    with pytest.raises(OSError, match=r"expected a new or empty folder|force"):
        fitted.save(tmp_path / "plain")
    fitted.save(tmp_path / "plain", force=True)
    (tmp_path / "plain" / "estimator.json").write_text("{")
    with pytest.raises(ValueError, match="expected the labels of an estimator, got a broken file"):
        vlprompt.PromptClassifier.load(tmp_path / "plain")
    with pytest.raises(ValueError, match="expected a prompt of PromptTextClassifier, got one of PromptClassifier"):
        vlprompt.PromptTextClassifier.load(tmp_path / "labelled")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1]}, "labels: expected one for each of the 10 class ids, got 2"),
        ({"labels": [0, True, *range(2, 10)]}, "labels: expected labels of one kind, got numbers and truth values"),
        ({"labels": [0, 0, *range(2, 10)]}, "expected a label for each of the 10 classes of the prompt, sorted"),
        ({"labels": [*range(9, -1, -1)]}, "expected a label for each of the 10 classes of the prompt, sorted"),
        ({"class_ids": ["1"] * 10}, "expected a label for each of the 10 classes of the prompt, sorted"),
        ({"float_range": [0, 1, 2]}, "float_range: expected"),
        ({"parameters": {"fit": 1}}, "fit: expected a setting as SECTION__NAME"),
        (None, "expected an object of JSON, got a list"),
    ],
)
def test_labels_that_are_not_those_of_the_prompt_are_refused(fitted, tmp_path, changes, message):
    fitted.save(tmp_path / "model")
    file = tmp_path / "model" / "estimator.json"
    file.write_text("[]" if changes is None else json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        vlprompt.PromptClassifier.load(tmp_path / "model")


def test_the_prompt_of_a_run_is_an_estimator(run_folder):
    estimator = vlprompt.PromptClassifier.load(run_folder)
    assert estimator.classes_.tolist() == sorted(NAMES)
    assert estimator.score(IMAGES, np.array(NAMES)[LABELS]) > 0.8
    assert estimator.get_params()["train__epochs"] == 2
    again = clone(estimator).fit(IMAGES, np.array(NAMES)[LABELS])
    assert again.learned_state_.config["method"] == estimator.learned_state_.config["method"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"epochs": 5},
            "epochs: expected a setting as SECTION__NAME .*, got 'epochs'. Write for example train__epochs",
        ),
        ({"train__epoch": 5}, "PromptClassifier: unknown key 'train.epoch'; .*epochs"),
        ({"train__epochs": "many"}, "PromptClassifier: train.epochs: expected .*, got 'many'"),
        ({"train__lr": -1}, "train.lr: expected a value above 0, got -1"),
        ({"method": "cop"}, "method: expected a known name, got 'cop'"),
        ({"method": None}, "PromptClassifier: method: expected a name, got None"),
        ({"backbone": "glph"}, "backbone: expected a known form, got 'glph'"),
        ({"seed": "x"}, "PromptClassifier: seed: expected an integer, got 'x'"),
        ({"method": "entropy"}, "method: expected one that learns from labelled items alone, got 'entropy'"),
        ({"method": "prompt_tuning"}, "prompt_tuning: expected a language model"),
        ({"task__layout": "classes"}, "task__layout: expected one of seed, shots, augment"),
        ({"task__shots": 0}, "task.shots: expected at least 1, got 0"),
        ({"pixel_range": (1, 0)}, r"pixel_range: expected the numbers of black and white, .*, got \(1, 0\)"),
        ({"template": 5}, "template: expected a text with a place for the class, {name}, got 5"),
        ({"validation_fraction": 2}, "validation_fraction: expected a number between 0 and 1, or None, got 2"),
    ],
)
def test_wrong_settings_are_refused_by_fit(settings, message):
    estimator = (
        prompt_classifier().set_params(**settings) if "epochs" not in settings else prompt_classifier(**settings)
    )
    with pytest.raises(ValueError, match=message):
        estimator.fit(IMAGES, LABELS)


@pytest.mark.parametrize("name", ["random_state", "_x", "classes_", "train__lr_", "fit"])
def test_keywords_that_are_no_settings_are_never_lost(name):
    with pytest.raises(ValueError, match=rf"^{name}: expected a setting as SECTION__NAME .*, got '{name}'"):
        prompt_classifier(**{name: 1}).fit(IMAGES, LABELS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES, LABELS[:9]), "labels: expected one for each of the 120 images, got 9"),
        ((IMAGES, LABELS * 0), r"labels: expected at least 2 classes, got one class only \(0\)"),
        ((IMAGES, LABELS + 0.5), "Unknown label type: continuous"),
        ((IMAGES, np.where(LABELS == 1, np.nan, 1.0)), "Input y contains NaN"),
        (
            (IMAGES, ["a", 1] * 60),
            "labels: expected labels of one kind, got strings and numbers. Convert all to strings",
        ),
        ((IMAGES, [True, 2] * 60), "labels: expected labels of one kind, got truth values and numbers"),
        ((IMAGES, ["a", None] * 60), r"labels: expected a label for each item, got None in 60 of 120"),
        (
            (IMAGES, pd.Series(["a", None] * 60, dtype="string")),
            "labels: expected a label for each item, got <NA> in 60",
        ),
        ((IMAGES, pd.Series([1, None] * 60, dtype="Int64")), "labels: expected a label for each item, got nan in 60"),
        ((IMAGES, [b"a", b"b"] * 60), r"labels: expected integers, strings or truth values, got an array of \\|S1"),
        ((IMAGES, [10**30, 1] * 60), "labels: expected integers, strings or truth values, got an array of object"),
        ((IMAGES, csr_matrix(LABELS)), "labels: expected a list or an array of labels, got a csr_matrix"),
        ((IMAGES, {0, 1}), "labels: expected a list or an array of labels, got a set"),
        (
            (IMAGES, np.eye(10)[LABELS]),
            r"labels: expected one for each of the images, got an array of the shape \(120, 10\)\. To learn several "
            r"labels an image, write a table .* --task multi_label",
        ),
        ((IMAGES, [["a", "b"], ["a"]] * 60), "got several labels for some. To learn several labels an image, write"),
        ((IMAGES, [{"a"}, {"b", "c"}] * 60), "got several labels for some. To learn several labels an image, write"),
        ((IMAGES, [[1, 0], [0, 1]] * 60), "got several labels for some. To learn several labels an image, write a"),
        ((IMAGES, LABELS, 5), "class_names: expected a list of names or a mapping .*, got a int"),
        ((IMAGES, LABELS, set(NAMES)), "class_names: expected a list of names or a mapping .*, got a set"),
        ((IMAGES, LABELS, [None, *NAMES[1:]]), "class_names: expected texts, got None"),
        ((IMAGES, None), "labels: expected a label for each of the images, got None"),
        ((IMAGES[:0], LABELS[:0]), "images: expected at least one image, got none"),
        ((np.full(IMAGES.shape, np.nan), LABELS), "images: expected finite numbers, got NaN"),
        ((IMAGES / 16, LABELS), "images: expected numbers of 0..1, or of 0..255"),
        ((IMAGES, LABELS, NAMES[:3]), "class_names: expected 10, one for each class in the order 0, 1, .*, got 3"),
        ((IMAGES, LABELS, {0: "zero"}), "class_names: expected a name for each label, got none for 1"),
        ((IMAGES, LABELS, None, IMAGES), "validation: expected a pair of images and labels, got a ndarray"),
        ((IMAGES, LABELS, None, (IMAGES[:2], [0, 11])), "validation: expected labels of the classes .*, got 11"),
        ((["a text", "another"], [0, 1]), "'a text': expected an image, got no such file"),
    ],
)
def test_data_that_can_not_be_learned_from_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        prompt_classifier().fit(*arguments)


def test_only_methods_for_streams_learn_lesson_by_lesson(fitted):
    assert not hasattr(prompt_classifier("tip_adapter"), "partial_fit")
    with pytest.raises(AttributeError, match=r"partial_fit: expected a method for streams .*, got 'tip_adapter'"):
        prompt_classifier("tip_adapter").partial_fit(IMAGES, LABELS)
    with pytest.raises(ValueError, match="partial_fit: expected lessons from the first on, got an estimator that fit"):
        copy.deepcopy(fitted).partial_fit(IMAGES, LABELS)
    stream = vlprompt.PromptClassifier("nearest_mean", "glyph/random").partial_fit(IMAGES, LABELS)
    for labels in (["x", "y"], [True, False]):
        with pytest.raises(ValueError, match="labels: expected labels as in the lessons before, such as 0, got "):
            stream.partial_fit(IMAGES[:2], labels)
    with pytest.raises(ValueError, match="labels: expected labels as in training, such as 0, got 'a'"):
        stream.score(IMAGES[:2], ["a", "b"])
    with pytest.raises(
        ValueError, match="partial_fit: expected the settings of the lessons before, got another method"
    ):
        stream.set_params(method__logit_scale=1.0).partial_fit(IMAGES, LABELS)
    with pytest.raises(ValueError, match="images: expected finite numbers"):
        stream.set_params(method__logit_scale=100.0).partial_fit(np.full((1, 8, 8), np.nan), [1])
    assert stream.score(IMAGES, LABELS) > 0.5


def test_nothing_is_answered_before_fit(tmp_path):
    for call in ("predict", "predict_proba", "decision_function", "score"):
        with pytest.raises(NotFittedError):
            getattr(prompt_classifier(), call)(IMAGES, *([LABELS] if call == "score" else []))
    with pytest.raises(NotFittedError):
        prompt_classifier().save(tmp_path / "model")
