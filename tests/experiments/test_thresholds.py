"""Thresholds of a stated share, and the temperature of the least likelihood, on scores and logits alone."""

import math

import pytest
import torch

from vlprompt.experiments.calibration.temperature import NoTemperatureError, fit_temperature
from vlprompt.experiments.calibration.threshold import choose_threshold, parse_rejection
from vlprompt.metrics import calibration_scores


def is_apart(threshold, scores):
    """No score is so near that its last bits decide."""
    return float((scores - threshold).abs().min()) > 1e-6


@pytest.mark.parametrize("text", ["0.95", "1", "0.07", "0.29", "1/3", "0.001"])
@pytest.mark.parametrize("levels", [3, 10_000])
def test_a_coverage_accepts_the_highest_scores_and_those_equal_to_the_last(text, levels):
    known = torch.randint(0, levels, (100,), generator=torch.Generator().manual_seed(1)).double() / levels
    rejection = parse_rejection(text)
    threshold = choose_threshold(rejection, known, None)
    last = known.sort(descending=True).values[math.ceil(rejection.share * 100) - 1]
    assert torch.equal(known >= threshold, known >= last)
    assert is_apart(threshold, known)


@pytest.mark.parametrize("text", ["fpr=0.05", "fpr=0", "fpr=0.29", "fpr=0.99", "fpr=1/3"])
@pytest.mark.parametrize("levels", [3, 10_000])
def test_a_false_positive_rate_rejects_all_that_it_must(text, levels):
    unknown = torch.randint(0, levels, (100,), generator=torch.Generator().manual_seed(2)).double() / levels
    rejection = parse_rejection(text)
    threshold = choose_threshold(rejection, torch.zeros(1), unknown)
    highest = unknown.sort(descending=True).values[math.floor(rejection.share * 100)]  # of those that are rejected
    assert torch.equal(unknown >= threshold, unknown > highest)
    assert int((unknown >= threshold).sum()) <= rejection.share * 100
    assert is_apart(threshold, unknown)


def test_a_share_is_what_was_written():
    """0.29 x 100 is 28.999999999999996 in floating point, and 0.07 x 100 is 7.000000000000001."""
    scores = torch.arange(100).double()
    assert choose_threshold(parse_rejection("0.07"), scores, None) == 92.5
    assert choose_threshold(parse_rejection(0.29), scores, None) == 70.5
    assert choose_threshold(parse_rejection("fpr=0.29"), scores, scores) == 70.5


@pytest.mark.parametrize(
    "text", ["0", "1.5", "95", "-1", "nan", "inf", "fpr=1", "fpr=-0.1", "tpr=0.9", "", "fpr=", "x"]
)
def test_a_share_out_of_range_is_refused(text):
    with pytest.raises(ValueError, match="--reject: expected the share of known items to accept"):
        parse_rejection(text)


def test_the_temperature_has_the_least_likelihood():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(300, 5, generator=generator, dtype=torch.double)
    labels = torch.multinomial((logits / 0.5).softmax(1), 1, generator=generator)[:, 0]
    temperature = fit_temperature(logits, labels)

    def nll(t):
        return calibration_scores((logits / t).softmax(1), labels)["nll"]

    assert 0.4 < temperature < 0.6
    assert nll(temperature) <= min(nll(t * temperature) for t in (0.9, 0.999, 0.99999, 1.00001, 1.001, 1.1))
    assert fit_temperature(8 * logits, labels) == 8 * temperature  # exactly: only exponents change
    assert fit_temperature(logits + 100, labels) == pytest.approx(temperature, rel=1e-9)


def test_items_without_a_best_temperature_are_refused():
    logits, labels = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    with pytest.raises(ValueError, match="at least one is answered wrong, got 12 that are all right"):
        fit_temperature(logits, labels)
    with pytest.raises(ValueError, match="answered better than by chance, got 12 that are not"):
        fit_temperature(-logits, labels)
    with pytest.raises(ValueError, match="answered better than by chance"):
        fit_temperature(torch.zeros(12, 3), labels)


def test_classes_that_are_ruled_out_leave_the_temperature_as_it_is():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(300, 5, generator=generator, dtype=torch.double)
    labels = torch.multinomial((logits / 0.5).softmax(1), 1, generator=generator)[:, 0]
    ruled_out = torch.cat([logits, torch.full((300, 1), -math.inf, dtype=torch.double)], 1)
    assert fit_temperature(ruled_out, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-12)
    with pytest.raises(NoTemperatureError, match="--calibrate: expected finite logits of the labels, got -inf"):
        fit_temperature(ruled_out, labels.clone().fill_(5))
