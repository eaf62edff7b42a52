"""Metrics by name: equal to scikit-learn and to twins written out, bootstrap and McNemar, and input that is refused."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn import metrics as theirs

from vlprompt import metrics as m
from vlprompt.metrics.catalogue import METRICS
from vlprompt.metrics.predictions import Predictions
from vlprompt.metrics.tables import TABLES

NAMES = tuple("abcdef")
BY_NAME = {name: metric for group in METRICS.values() for name, metric in group.items()}


def draw(seed=0, n=60, known=4, silent=False):
    """Predictions of six classes, of which training had some; perhaps one item without an answer."""
    rng = np.random.RandomState(seed)
    p = torch.from_numpy(rng.dirichlet(np.ones(6), n))
    labels = torch.from_numpy(np.concatenate([np.arange(6), rng.randint(0, 6, n - 6)]))
    predicted = p.argmax(1)
    if silent:
        predicted[0] = 6
    return Predictions(p, predicted, NAMES, labels, is_known=torch.arange(6) < known)


def draw_several(seed=0, n=40):
    rng = np.random.RandomState(seed)
    targets = torch.from_numpy((rng.rand(n, 6) < 0.3).astype(np.int64))
    targets[:, 5] = 0
    p = torch.from_numpy(rng.rand(n, 6))
    return Predictions(p, p.argmax(1), NAMES, targets=targets)


def value(name, predictions):
    return BY_NAME[name].compute(predictions)


def test_every_name_has_its_words_and_stays_in_its_range():
    assert len(BY_NAME) == sum(map(len, METRICS.values()))  # no name twice
    one, several = draw(), draw_several()
    for name, metric in BY_NAME.items():
        assert metric.definition
        assert metric.source
        low, high = (float(eval(end.replace("K", "6"))) for end in metric.limits.split(" to "))
        needs_several = name in ("CP", "CR", "CF1", "CF1_mean", "OP", "OR", "OF1", "F1@3", "F1@5")
        assert low <= metric.compute(several if needs_several else one) <= high, name
        if metric.per_item is not None:
            assert metric.per_item(one).mean().item() == pytest.approx(metric.compute(one), abs=1e-12)
    assert all(table.compute(one) for table in TABLES.values())


def test_as_scikit_learn():
    p = draw(1, silent=True)
    y, a = p.labels.numpy(), p.predicted.numpy()
    assert value("accuracy", p) == pytest.approx(100 * theirs.accuracy_score(y, a))
    for k in (3, 5):
        assert value(f"top{k}", p) == pytest.approx(100 * theirs.top_k_accuracy_score(y, p.probabilities.numpy(), k=k))
    ties = torch.tensor([[0.2, 0.2, 0.2, 0.4], [0.4, 0.2, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2], [0.25] * 4])
    for labels, k in itertools.product(itertools.product(range(4), repeat=4), (1, 2, 3)):
        gold = theirs.top_k_accuracy_score(labels, ties.numpy(), k=k, labels=range(4))
        assert m.top_k_accuracy(ties, torch.tensor(labels), k) == pytest.approx(100 * gold)
    assert value("micro_recall", p) == value("accuracy", p)
    assert value("micro_precision", p) > value("accuracy", p)  # an item without an answer is no prediction
    assert m.confusion_matrix(p.predicted, p.labels, 6).tolist() == theirs.confusion_matrix(y, a)[:6].tolist()
    counted = np.zeros((6, 7), int)
    np.add.at(counted, (y, a), 1)
    rows = {(row["class"], row["answer"]): row["items"] for row in TABLES["confusion"].compute(p)}
    assert rows == {(NAMES[i], (*NAMES, "(no answer)")[j]): n for (i, j), n in np.ndenumerate(counted) if n}
    assert value("auroc_ovr", p) == pytest.approx(100 * theirs.roc_auc_score(y, p.probabilities, multi_class="ovr"))
    top, right = p.confidence, p.top_correct
    gold = theirs.roc_auc_score(p.item_is_known, p.known_score)
    assert value("auroc", p) == pytest.approx(100 * gold)
    assert m.reliability(top, right, 10)[0].sum() == len(p)


def test_several_labels_as_scikit_learn_and_by_hand():
    p = draw_several(2)
    y, s = p.targets.numpy(), p.probabilities.numpy()
    gold = [theirs.average_precision_score(y[:, c], s[:, c]) for c in range(5)]
    assert value("mAP", p) == pytest.approx(100 * np.mean(gold))
    assert value("mAP_absent_zero", p) == pytest.approx(100 * np.mean([*gold, 0]))
    tied = (p.probabilities * 4).round()
    gold = [theirs.average_precision_score(y[:, c], tied[:, c]) for c in range(5)]
    assert m.average_precisions(tied, p.targets)[:5].tolist() == pytest.approx([100 * g for g in gold])
    for average, names in (("macro", ("CP", "CR", "CF1_mean")), ("micro", ("OP", "OR", "OF1"))):
        gold = theirs.precision_recall_fscore_support(y, s > 0.5, average=average, zero_division=0)[:3]
        assert [value(name, p) for name in names] == pytest.approx([100 * g for g in gold])
    cp, cr = value("CP", p), value("CR", p)
    assert value("CF1", p) == pytest.approx(2 * cp * cr / (cp + cr))
    assert value("CF1", p) != pytest.approx(value("CF1_mean", p), abs=0.1)
    rows = TABLES["per_class"].compute(p)
    assert rows[0]["average_precision"] == pytest.approx(100 * theirs.average_precision_score(y[:, 0], s[:, 0]))
    assert math.isnan(rows[5]["average_precision"])
    unknown = p.targets.clone()
    unknown[:20] = -1
    half, rest = Predictions(p.probabilities, p.predicted, NAMES, targets=unknown), p.select(torch.arange(20, 40))
    for name in ("mAP", "CF1", "OF1"):
        assert value(name, half) == pytest.approx(value(name, rest))  # what is unknown counts for nothing


def test_voc_by_hand():
    scores, targets = torch.tensor([[0.9], [0.8], [0.7], [0.6]]), torch.tensor([[1], [0], [1], [0]])
    assert m.average_precisions(scores, targets).item() == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert m.average_precisions(scores, targets, "voc2007").item() == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)
    assert m.average_precisions(scores, targets, "voc2010").item() == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert m.average_precisions(scores, torch.ones_like(targets)).item() == 100
    unknown = torch.tensor([[1], [0], [-1], [1], [0]])  # what is unknown leaves the ranking
    more = torch.tensor([[0.9], [0.8], [0.75], [0.7], [0.6]])
    for rule in ("all_points", "voc2007", "voc2010"):
        mine, theirs = m.average_precisions(more, unknown, rule), m.average_precisions(scores, targets, rule)
        assert mine.item() == pytest.approx(theirs.item())


def test_the_recalls_of_voc_are_added_up():
    """A recall of .3 is below 3 * .1, as in py-faster-rcnn."""
    targets = torch.tensor([[1]] * 3 + [[0]] + [[1]] * 7)
    value = m.average_precisions(-torch.arange(11.0)[:, None], targets, "voc2007").item()
    assert value == pytest.approx(100 * (3 * 1 + 8 * 10 / 11) / 11)


def test_what_is_chosen_at_its_threshold():
    scores = torch.tensor([[0.5, 0.6, 0.4]], dtype=torch.double)
    assert m.select_labels(scores, 0.5).tolist() == [[False, True, False]]  # it must be exceeded
    p = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]], dtype=torch.double)
    labels = torch.tensor([0, 1, 1])
    # of class 0 nothing lies above .5; of class 1 .75 and .9, which are right and in two bins
    error = m.class_calibration_error(p, labels, 2, threshold=0.5)
    assert error == pytest.approx(100 * (0 + (0.25 + 0.1) / 2) / 2)


def test_pairs_without_a_right_side():
    some, right = torch.tensor([0.3, 0.2]), torch.ones(2).bool()
    assert m.openworld_auc(some, right, some - 1, right) == 100
    assert m.openworld_auc(some, ~right, some - 1, right) == m.openworld_auc(some, right, some - 1, ~right) == 0
    assert m.open_auc(some, ~right, some - 1) == 0


@pytest.mark.parametrize("seed", range(3))
def test_pairs_written_out(seed):
    p = draw(seed, 40)
    known, other = torch.arange(6) < 4, torch.arange(6) >= 4
    rows = list(zip(p.probabilities, p.labels.tolist(), strict=True))

    def named(row, label):
        own = known if label < 4 else other
        return row.masked_fill(~own, -1).argmax() == label

    base, new = ([(row[known].max(), named(row, k)) for row, k in rows if (k < 4) == side] for side in (True, False))
    ranked = [[a * b * ((s > t) + 0.5 * (s == t)) for t, b in new] for s, a in base]
    assert value("openworld_auc", p) == pytest.approx(100 * float(np.mean(ranked)))
    ranked = [[a * ((s > t) + 0.5 * (s == t)) for t, _ in new] for s, a in base]
    assert value("open_auc", p) == pytest.approx(100 * float(np.mean(ranked)))
    answers = p.probabilities.argmax(1)
    recalls = [(answers[p.labels == c] == c).double().mean() for c in range(4)]
    share, rejected = float(np.mean(recalls)), float((answers[p.labels >= 4] >= 4).double().mean())
    assert value("h_score", p) == pytest.approx(100 * 2 * share * rejected / (share + rejected) if rejected else 0)


def test_mcnemar():
    first, second = torch.tensor([1, 1, 1, 1, 1, 0, 1, 0]).bool(), torch.tensor([1, 0, 0, 0, 0, 0, 0, 1]).bool()
    assert m.mcnemar(first, second) == (5, 1, pytest.approx(binomtest(5, 6).pvalue))
    assert m.mcnemar(first, second).p == pytest.approx(2 * (6 + 1) / 64)
    assert m.mcnemar(first, first) == (0, 0, 1.0)


def test_bootstrap():
    rng = np.random.RandomState(0)
    d = torch.from_numpy(rng.randn(400) + 0.2)
    one = m.paired_bootstrap(lambda places: d[places].mean().item(), 400)
    assert one.difference == d.mean().item()
    error = (d.var() / 400).sqrt().item()  # of the mean, so that the interval is about 1.96 of it to each side
    assert one.low == pytest.approx(one.difference - 1.96 * error, abs=0.2 * error)
    assert one.high == pytest.approx(one.difference + 1.96 * error, abs=0.2 * error)
    assert one == m.paired_bootstrap(lambda places: d[places].mean().item(), 400)
    assert one != m.paired_bootstrap(lambda places: d[places].mean().item(), 400, seed=1)
    odd = m.paired_bootstrap(lambda places: 1.0 if 0 in places else math.nan, 3, 200)
    assert odd.n_undefined > 20
    assert odd[:3] == (1, 1, 1)  # of the draws on which it is defined
    drawn = [m.paired_bootstrap(lambda places, k=k: float(k in places), 3, 200).high for k in range(3)]
    assert drawn == [1, 1, 1]  # every item can be drawn


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.confusion_matrix(torch.empty(0).long(), torch.empty(0).long(), 3), "at least one item, got none"),
        (lambda: m.top_k_accuracy(torch.rand(2, 3), torch.tensor([0, 3])), r"from 0 to 2, got 3 \(1 of 2 lie outside"),
        (lambda: m.precision_recall_f1(torch.tensor([0]), torch.tensor([-1]), 3), "from 0 to 2, got -1"),
        (lambda: m.mean_average_precision(torch.rand(2, 3), torch.zeros(2, 3)), "positive somewhere, got none"),
        (lambda: m.average_precisions(torch.rand(2, 3), torch.full((2, 3), 2)), r"1, 0 or -1 \(unknown\), got 2"),
        (lambda: m.average_precisions(torch.rand(2, 3), torch.zeros(2, 4)), r"\(N, C\), got \(2, 4\) for scores"),
        (lambda: m.average_precisions(torch.full((2, 3), math.nan), torch.ones(2, 3)), "expected numbers, got 6 NaN"),
        (lambda: m.classwise_auroc(torch.rand(2, 3), torch.tensor([0, 1])), r"every class, got none of \[2\]"),
        (
            lambda: m.adjusted_balanced_accuracy(torch.tensor([0]), torch.tensor([1]), 3),
            "two classes that occur, got one",
        ),
        (
            lambda: m.joint_accuracies(torch.rand(2, 3), torch.tensor([0, 1]), torch.ones(3).bool()),
            "got base ones only",
        ),
        (lambda: m.h_score(torch.tensor([0]), torch.tensor([3]), 3), "got unknown ones only"),
        (lambda: m.h_score(torch.tensor([0]), torch.tensor([0]), 3), "got known ones only"),
        (lambda: m.openworld_auc(*[torch.ones(1)] * 2, *[torch.ones(0)] * 2), "unknown: expected the scores of at le"),
        (lambda: m.openworld_auc(torch.tensor([math.nan]), torch.zeros(1), *[torch.ones(1)] * 2), "got 1 NaN"),
        (lambda: value("auroc", draw(known=6)), "classes that training had and of others, got one kind"),
        (lambda: value("accuracy", draw_several()), "one label each, got items of several"),
        (lambda: value("CF1", draw()), "several labels, got items of one label each"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
