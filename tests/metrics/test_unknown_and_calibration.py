"""Metrics of unknown classes and of calibration: the authors' values, twins written out, ties, empty sides and NaN."""

import math

import numpy as np
import pytest
import torch
from shared import golden

from vlprompt.metrics import (
    adaptive_calibration_error,
    aupr,
    auroc,
    brier_score,
    calibration_error,
    calibration_scores,
    classification_scores,
    fpr_at_recall,
    negative_log_likelihood,
    unknown_scores,
)

OPEN, CLASSES = golden("metrics-ood"), golden("metrics-classification")
SIDES = ("plain", "ties", "small", "perfect", "equal", "softmax")


@pytest.mark.parametrize("case", SIDES)
def test_unknown_classes_are_scored_as_by_the_authors(case):
    told, arrays = OPEN
    known, unknown = arrays[f"{case}.known"], arrays[f"{case}.unknown"]
    if case == "softmax":
        assert known.dtype == torch.float32
    mine = unknown_scores(known, unknown)
    names = {"auroc": "auroc", "aupr_known": "aupr_in", "aupr_unknown": "aupr_out", "fpr95": "fpr95",
             "fpr95_first": "fpr95_at_least"}  # fmt: skip
    for theirs, name in names.items():
        assert mine[name] / 100 == pytest.approx(told["values"][f"{case}.{theirs}"]["value"], abs=1e-12), theirs
    rejected = fpr_at_recall(-unknown, -known, closest=False) / 100
    assert rejected == pytest.approx(told["values"][f"{case}.fpr95_unknown_first"]["value"], abs=1e-12)


@pytest.mark.parametrize("case", ["plain", "absent", "edges"])
def test_calibration_is_as_by_the_authors(case):
    told, arrays = CLASSES
    probabilities, labels = arrays[f"{case}.probs"], arrays[f"{case}.labels"]
    n_classes, values = probabilities.shape[1], told["values"]
    mine = {"nll": negative_log_likelihood(probabilities, labels), "brier": brier_score(probabilities, labels)}
    for n in (8, 10, 15, 20):
        mine |= {f"ece{n}": calibration_error(probabilities, labels, n) / 100}
        mine |= {f"adaece{n}": adaptive_calibration_error(probabilities, labels, n) / 100}
    scores = classification_scores(probabilities.argmax(1), probabilities, labels, n_classes)
    mine |= {"accuracy": scores["accuracy"] / 100, "f1_dassl": scores["macro_f1"] / 100}
    mine |= {"balanced_accuracy": scores["class_mean"] / 100}
    compared = [name for name in mine if f"{case}.{name}" in values]
    assert len(compared) >= 9
    for name in compared:
        assert mine[name] == pytest.approx(values[f"{case}.{name}"]["value"], abs=1e-7), name
    ours = calibration_scores(probabilities, labels)
    assert ours["ece10"] == 100 * mine["ece10"]
    assert ours["brier"] == mine["brier"]


def count_accepted(known, unknown):
    """(share of the known, share of the unknown, known, unknown) at each distinct threshold, strictest first."""
    rows = []
    for threshold in sorted({*known, *unknown}, reverse=True):
        a, b = sum(s >= threshold for s in known), sum(s >= threshold for s in unknown)
        rows.append((a / len(known), b / len(unknown), a, b))
    return rows


def written_out(known, unknown):
    rows = count_accepted(known, unknown)
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in known for b in unknown]
    last, area = 0.0, 0.0
    for share, _, a, b in rows:
        area, last = area + (share - last) * a / (a + b), share
    loosest_first = [row for row in rows if row[0] < 1] + [next(row for row in rows if row[0] == 1)]
    closest = min(reversed(loosest_first), key=lambda row: abs(row[0] - 0.95))
    return {
        "auroc": 100 * sum(pairs) / len(pairs),
        "aupr_in": 100 * area,
        "fpr95": 100 * closest[1],
        "fpr95_at_least": 100 * next(row[1] for row in rows if row[0] >= 0.95),
    }


@pytest.mark.parametrize("seed", range(12))
def test_unknown_classes_as_written_out(seed):
    rng = np.random.RandomState(seed)
    n, m, levels = int(rng.randint(1, 90)), int(rng.randint(1, 40)), (3, 7, 1000)[seed % 3]
    known, unknown = (rng.randint(0, levels, k) / levels + shift for k, shift in ((n, 0.3), (m, 0.0)))
    mine = unknown_scores(torch.from_numpy(known), torch.from_numpy(unknown))
    twin = written_out(known.tolist(), unknown.tolist())
    twin["aupr_out"] = written_out((-unknown).tolist(), (-known).tolist())["aupr_in"]
    assert mine == pytest.approx(twin, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_calibration_as_written_out(seed):
    rng = np.random.RandomState(seed)
    p = rng.dirichlet(np.ones(4) * 0.5, 50)
    labels = rng.randint(0, 4, 50)
    top, right = p.max(1), p.argmax(1) == labels
    for n in (10, 15):
        ece = sum(abs(sum(right[b].astype(float) - top[b])) for b in (
            (top > k / n) & (top <= (k + 1) / n) for k in range(n))) / 50  # fmt: skip
        assert calibration_error(torch.from_numpy(p), torch.from_numpy(labels), n) == pytest.approx(100 * ece, abs=1e-9)
    nll = -sum(math.log(min(max(row[k], 2.220446049250313e-16), 1 - 2.220446049250313e-16))
               for row, k in zip(p, labels, strict=True)) / 50  # fmt: skip
    brier = sum((row[c] - (c == k)) ** 2 for row, k in zip(p, labels, strict=True) for c in range(4)) / 50
    scores = calibration_scores(torch.from_numpy(p), torch.from_numpy(labels))
    assert scores["nll"] == pytest.approx(nll, abs=1e-9)
    assert scores["brier"] == pytest.approx(brier, abs=1e-9)


def test_a_probability_of_zero_has_a_finite_likelihood():
    p, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.double), torch.tensor([0, 1])
    assert negative_log_likelihood(p, labels) == pytest.approx(-math.log(2.220446049250313e-16) / 2)
    assert negative_log_likelihood(p, torch.tensor([0, 0])) == pytest.approx(2.220446049250313e-16, abs=1e-20)


@pytest.mark.parametrize("metric", [auroc, aupr, fpr_at_recall, unknown_scores])
def test_a_side_that_is_empty_or_not_a_number_is_refused(metric):
    some = torch.tensor([0.1, 0.2])
    with pytest.raises(ValueError, match="unknown: expected the scores of at least one item, got none"):
        metric(some, torch.empty(0))
    with pytest.raises(ValueError, match="known: expected the scores of at least one item"):
        metric(torch.empty(0), some)
    with pytest.raises(ValueError, match="known: expected scores that are numbers, got 1 NaN"):
        metric(torch.tensor([0.1, math.nan]), some)


def test_scores_may_be_infinite():
    known, unknown = torch.tensor([math.inf, 1.0]), torch.tensor([-math.inf, 0.0])
    assert unknown_scores(known, unknown) == pytest.approx(
        {"auroc": 100, "fpr95": 0, "fpr95_at_least": 0, "aupr_in": 100, "aupr_out": 100}
    )
