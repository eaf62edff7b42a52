"""Scores of several labels as a result has them, and the threshold against every other one."""

import pytest
import torch
from sklearn.metrics import f1_score

from vlprompt.engine.label_scores import DEFAULT_THRESHOLD, LABEL_METRICS, choose_threshold, score_labels
from vlprompt.metrics import mean_average_precision


def drawn(n=40, n_classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(-1, 2, (n, n_classes), generator=generator)
    return torch.randn(n, n_classes, generator=generator) + targets, targets


def test_scores_are_those_at_the_threshold():
    odds, targets = drawn()
    targets = targets.clamp(min=0)
    scores = score_labels(odds, targets, 0.3)
    truth, predicted = targets.numpy(), (odds > 0.3).numpy()
    assert list(scores) == list(LABEL_METRICS)
    assert scores["OF1"] == pytest.approx(100 * f1_score(truth, predicted, average="micro"))
    assert scores["CF1_mean"] == pytest.approx(100 * f1_score(truth, predicted, average="macro"))
    assert scores["mAP"] == mean_average_precision(odds, targets)
    assert scores["threshold"] == 0.3
    hidden = targets.clone()
    hidden[odds > 2.5] = -1
    without = score_labels(odds.masked_fill(odds > 2.5, -9.0), hidden, 0.3)
    assert score_labels(odds, hidden, 0.3) == without  # what is unknown is neither right nor wrong


def test_large_odds_are_ranked():
    """Their probabilities round to one in float32, and would be equal."""
    odds, targets = torch.tensor([[30.0], [31.0], [29.0]]), torch.tensor([[0], [1], [0]])
    assert score_labels(odds, targets, 30.5)["mAP"] == 100
    assert score_labels(odds, targets, 30.5)["OF1"] == 100


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better(seed):
    odds, targets = drawn(seed=seed)
    best = score_labels(odds, targets, choose_threshold(odds, targets))["OF1"]
    assert best >= max(score_labels(odds, targets, float(t))["OF1"] for t in odds.flatten()) - 1e-9


def test_thresholds_of_equal_logits_and_of_none():
    assert choose_threshold(torch.zeros(3, 2), torch.tensor([[1, 0], [0, 0], [0, 0]])) < 0  # all or none
    assert choose_threshold(torch.ones(3, 2), torch.zeros(3, 2)) == DEFAULT_THRESHOLD
