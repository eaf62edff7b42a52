"""Scores of several labels against scikit-learn and hand counts, and the threshold against every other one."""

import pytest
import torch
from sklearn.metrics import f1_score

from vlprompt.engine.label_scores import (
    DEFAULT_THRESHOLD,
    average_precisions,
    choose_threshold,
    mean_average_precision,
    score_labels,
)


def drawn(n=40, n_classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(-1, 2, (n, n_classes), generator=generator)
    return torch.randn(n, n_classes, generator=generator) + targets, targets


def test_average_precision_by_hand():
    scores, targets = torch.tensor([[4.0], [3.0], [2.0], [1.0], [9.0]]), torch.tensor([[1], [0], [1], [0], [-1]])
    assert average_precisions(scores, targets).tolist() == pytest.approx([100 * (1 + 2 / 3) / 2])


def test_a_class_that_is_never_positive_is_left_out():
    scores, targets = drawn()
    expected = average_precisions(scores, targets)[:4].mean().item()
    targets[:, 4] = targets[:, 4].clamp(max=0)
    assert average_precisions(scores, targets)[4].isnan()
    assert mean_average_precision(scores, targets) == pytest.approx(expected)
    with pytest.raises(ValueError, match="expected a class that is positive somewhere, got none"):
        mean_average_precision(scores, targets.clamp(max=0))


def test_precision_recall_and_f1_of_known_entries():
    scores, targets = drawn()
    targets = targets.clamp(min=0)
    found = score_labels(scores, targets, 0.3)
    truth, predicted = targets.numpy(), (scores > 0.3).numpy()
    assert found["OF1"] == pytest.approx(100 * f1_score(truth, predicted, average="micro"))
    assert found["CF1_mean"] == pytest.approx(100 * f1_score(truth, predicted, average="macro"))
    cp, cr = found["CP"], found["CR"]
    assert found["CF1"] == pytest.approx(2 * cp * cr / (cp + cr))
    hidden = targets.clone()
    hidden[scores > 2.5] = -1
    without = score_labels(scores.masked_fill(scores > 2.5, -9.0), hidden, 0.3)
    assert score_labels(scores, hidden, 0.3) == without  # what is unknown is neither right nor wrong


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better(seed):
    scores, targets = drawn(seed=seed)
    best = score_labels(scores, targets, choose_threshold(scores, targets))["OF1"]
    assert best >= max(score_labels(scores, targets, float(t))["OF1"] for t in scores.flatten()) - 1e-9


def test_thresholds_of_equal_logits_and_of_none():
    assert choose_threshold(torch.zeros(3, 2), torch.tensor([[1, 0], [0, 0], [0, 0]])) < 0  # all or none
    assert choose_threshold(torch.ones(3, 2), torch.zeros(3, 2)) == DEFAULT_THRESHOLD
