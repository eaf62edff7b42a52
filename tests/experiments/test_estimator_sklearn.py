"""scikit-learn's own tools take PromptClassifier: its checks, clone, searches, pipelines, calibration, processes."""

import numpy as np
import pytest
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import (
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    estimator_checks_generator,
    parametrize_with_checks,
)

from vlprompt import PromptClassifier, PromptTextClassifier

DIGITS = load_digits()
IMAGES, LABELS = (DIGITS.images * (255 / 16)).round().astype(np.uint8)[:120], DIGITS.target[:120]
SHORT = {"backbone": "glyph/random", "train__epochs": 1, "task__augment": "none", "task__shots": 1}

LEFT_OUT = {
    "check_fit_score_takes_y": "fit and partial_fit call their second argument labels, as in fit(images, labels)",
    "check_no_attributes_set_in_init": "keywords SECTION__NAME are attributes; the check passes without them",
    "check_methods_subset_invariance": "float32 sums of another batch differ by 1e-7, as much as the check allows",
}
QUICK = (
    "check_estimator_cloneable",
    "check_estimators_overwrite_params",
    "check_dont_overwrite_parameters",
    "check_estimators_unfitted",
    "check_n_features_in_after_fitting",
    "check_estimators_nan_inf",
    "check_estimators_pickle",
    "check_classifiers_one_label",
    "check_classifiers_classes",
    "check_estimators_partial_fit_n_features",
    "check_get_params_invariance",
    "check_set_params",
    "check_dict_unchanged",
    "check_requires_y_none",
)


def rows_classifier():
    """An estimator of rows of any numbers, which the checks bring: each is an image of one row."""
    return PromptClassifier(
        "linear", "pixels", image_shape=(1, -1), pixel_range=(-25, 115), preprocess__resize="squash"
    )


def name_of(check):
    return getattr(check, "func", check).__name__


@pytest.mark.slow
@parametrize_with_checks([rows_classifier()], expected_failed_checks=lambda _: LEFT_OUT, xfail_strict=True)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", QUICK)
def test_quick_checks_of_scikit_learn(name):
    checks = [check for _, check in estimator_checks_generator(rows_classifier()) if name_of(check) == name]
    assert checks
    checks[0](rows_classifier())


@pytest.mark.parametrize("kind", [PromptClassifier, PromptTextClassifier])
def test_constructors_only_store(kind):
    check_no_attributes_set_in_init(kind.__name__, kind())
    check_parameters_default_constructible(kind.__name__, kind())


def test_settings_are_parameters():
    estimator = PromptClassifier(method__n_ctx=2, **SHORT)
    assert estimator.get_params()["method__n_ctx"] == 2
    assert repr(estimator).replace("\n", " ").startswith("PromptClassifier(backbone='glyph/random', method__n_ctx=2,")
    other = clone(estimator).set_params(method__n_ctx=4, method="vpt", preprocess="imagenet")
    assert (other.get_params()["method__n_ctx"], other.method, other.get_params()["preprocess"]) == (
        4,
        "vpt",
        "imagenet",
    )
    assert estimator.get_params()["method__n_ctx"] == 2
    with pytest.raises(ValueError, match="Invalid parameter 'epochs' for estimator PromptClassifier"):
        estimator.set_params(epochs=3)


def test_cross_validation_of_lists():
    scores = cross_val_score(PromptClassifier("nearest_mean", "glyph/random"), list(IMAGES), LABELS, cv=2)
    assert (scores > 0.3).all()


def test_a_grid_sets_method_and_training():
    grid = {"method__n_ctx": np.array([1, 2]), "train__lr": [0.001], "seed": [1, 2]}
    search = GridSearchCV(PromptClassifier(**SHORT), grid, cv=2, error_score="raise").fit(IMAGES, LABELS)
    assert search.best_estimator_.learned_state_.config["method"]["n_ctx"] == search.best_params_["method__n_ctx"]
    assert search.best_estimator_.learned_state_.config["train"]["lr"] == 0.001
    assert len(search.cv_results_["params"]) == 4


def test_a_pipeline_of_rows_of_pixels():
    classifier = PromptClassifier("nearest_mean", "glyph/random", image_shape=(8, 8), pixel_range=(0, 1))
    pipeline = make_pipeline(FunctionTransformer(lambda rows: rows / 16), classifier)
    assert (
        pipeline.set_params(promptclassifier__seed=2).fit(DIGITS.data[:120], LABELS).score(DIGITS.data[:120], LABELS)
        > 0.5
    )


def test_calibration():
    calibrated = CalibratedClassifierCV(PromptClassifier("nearest_mean", "glyph/random"), cv=2).fit(IMAGES, LABELS)
    probabilities = calibrated.predict_proba(IMAGES[:9])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert calibrated.score(IMAGES, LABELS) > 0.3


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_two_at_once_learn_what_one_learns(backend):
    jobs = [delayed(_fit_and_answer)(seed) for seed in (1, 2)]
    both = Parallel(n_jobs=2, backend=backend)(jobs)
    for seed, answers in zip((1, 2), both, strict=True):
        np.testing.assert_array_equal(answers, _fit_and_answer(seed))
    assert np.abs(both[0] - both[1]).max() > 0


def _fit_and_answer(seed):
    return PromptClassifier(seed=seed, **SHORT).fit(IMAGES, LABELS).decision_function(IMAGES[:4])


@pytest.mark.slow
def test_a_search_in_processes_of_their_own():
    search = GridSearchCV(PromptClassifier(**SHORT), {"seed": [1, 2]}, cv=2, n_jobs=2).fit(IMAGES, LABELS)
    alone = GridSearchCV(PromptClassifier(**SHORT), {"seed": [1, 2]}, cv=2).fit(IMAGES, LABELS)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
