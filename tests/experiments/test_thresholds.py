"""Thresholds of a stated share, and the temperature of the least likelihood, on scores and logits alone."""

import math

import pytest
import torch

from vlprompt.experiments.calibration.temperature import NoTemperatureError, fit_temperature
from vlprompt.experiments.calibration.threshold import choose_threshold, parse_rejection
from vlprompt.metrics import calibration_scores


@pytest.mark.parametrize("text", ["0.95", "1", "0.07", "0.29", "1/3", "0.001"])
@pytest.mark.parametrize("levels", [3, 10_000])
def test_a_coverage_is_reached_by_the_largest_threshold(text, levels):
    known = torch.randint(0, levels, (100,), generator=torch.Generator().manual_seed(1)).double() / levels
    rejection = parse_rejection(text)
    threshold = choose_threshold(rejection, known, None)
    wanted = rejection.share * 100
    assert int((known >= threshold).sum()) >= wanted > int((known > threshold).sum())
    if levels > 100 and known.unique().numel() == 100:
        assert int((known >= threshold).sum()) == math.ceil(wanted)


@pytest.mark.parametrize("text", ["fpr=0.05", "fpr=0", "fpr=0.29", "fpr=0.99", "fpr=1/3"])
@pytest.mark.parametrize("levels", [3, 10_000])
def test_a_false_positive_rate_is_held_by_the_smallest_threshold(text, levels):
    unknown = torch.randint(0, levels, (100,), generator=torch.Generator().manual_seed(2)).double() / levels
    rejection = parse_rejection(text)
    threshold = choose_threshold(rejection, torch.zeros(1), unknown)
    assert int((unknown >= threshold).sum()) <= rejection.share * 100
    assert int((unknown >= math.nextafter(threshold, -math.inf)).sum()) > rejection.share * 100


def test_a_share_is_what_was_written():
    """0.29 x 100 is 28.999999999999996 in floating point, and 0.07 x 100 is 7.000000000000001."""
    scores = torch.arange(100).double()
    assert choose_threshold(parse_rejection("0.07"), scores, None) == 93
    assert choose_threshold(parse_rejection(0.29), scores, None) == 71
    assert choose_threshold(parse_rejection("fpr=0.29"), scores, scores) == math.nextafter(70, math.inf)


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
