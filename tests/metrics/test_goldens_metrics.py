"""Every metric against the values of the authors' codes and of scikit-learn (`metrics-*` in golden)."""

import pytest
import torch
from shared import golden

from vlprompt import metrics as m

CLASSES, LABELS = golden("metrics-classification"), golden("metrics-multilabel")
OPEN, WORLD = golden("metrics-ood"), golden("metrics-openworld")


def compare(mine, content, case, factor=100.0, close=1e-7):
    """Compare values in percent with fractions; return how many the vector has."""
    values = {name: content["values"].get(f"{case}.{name}") for name in mine}
    stored = {name: value["value"] for name, value in values.items() if value is not None}
    for name, value in stored.items():
        own = torch.as_tensor(mine[name], dtype=torch.double).flatten()
        gold = factor * torch.tensor(value, dtype=torch.double).flatten()
        assert own.shape == gold.shape, name
        assert torch.allclose(own, gold, rtol=1e-9, atol=100 * close), (name, own, gold)
    return len(stored)


def score_classes(p, labels):
    n, predicted = p.shape[1], p.argmax(1)
    precision, recall, f1 = m.precision_recall_f1(predicted, labels, n)
    mine = {
        "accuracy": m.accuracy(predicted, labels),
        "top3": m.top_k_accuracy(p, labels, 3),
        "confusion": 100 * m.confusion_matrix(predicted, labels, n),
        "support": 100 * torch.bincount(labels, minlength=n),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "f1_dassl": m.macro_f1(predicted, labels, n),
        "balanced_accuracy": m.mean_class_accuracy(predicted, labels, n),
        "balanced_adjusted": m.adjusted_balanced_accuracy(predicted, labels, n),
        "matthews": m.matthews_correlation(predicted, labels),
        "kappa": m.cohen_kappa(predicted, labels),
        "nll": 100 * m.negative_log_likelihood(p, labels),
        "brier": 100 * m.brier_score(p, labels),
    }
    for average in ("macro", "micro", "weighted"):
        mine[f"f1_{average}"] = m.precision_recall_f1(predicted, labels, n, average)[2]
    return mine


def score_calibration(p, labels):
    confidence, predicted = p.max(1)
    mine = {}
    for n in (8, 10, 15, 20):
        gaps = m.bin_gaps(confidence, predicted == labels, n)
        mine |= {f"ece{n}": m.calibration_error(p, labels, n), f"adaece{n}": m.adaptive_calibration_error(p, labels, n)}
        mine |= {f"mce{n}": gaps["mce"], f"l2_{n}": gaps["rmsce"], f"average_ce{n}": gaps["average_calibration_error"]}
        mine |= {f"ace{n}": m.class_calibration_error(p, labels, n)}
        mine |= {f"sce{n}": m.class_calibration_error(p, labels, n, equal_mass=False)}
        mine |= {f"tace{n}": m.class_calibration_error(p, labels, n, threshold=0.01)}
        mine |= {f"classwise_ece{n}": m.classwise_calibration_error(p[:, : int(labels.max()) + 1], labels, n)}
    return mine


@pytest.mark.parametrize(("case", "n_values"), [("plain", 17), ("absent", 17), ("edges", 16)])
def test_answers(case, n_values):
    content, arrays = CLASSES
    p, labels = arrays[f"{case}.probs"], arrays[f"{case}.labels"]
    assert compare(score_classes(p, labels), content, case) == n_values
    rows = m.confusion_matrix(p.argmax(1), labels, p.shape[1]).double()
    shares = {"confusion_true": 100 * rows / rows.sum(1, keepdim=True).clamp(min=1)}
    assert compare(shares, content, case) == 1


@pytest.mark.parametrize(("case", "n_values"), [("plain", 26), ("absent", 26), ("edges", 16)])
def test_calibration(case, n_values):
    content, arrays = CLASSES
    assert compare(score_calibration(arrays[f"{case}.probs"], arrays[f"{case}.labels"]), content, case) == n_values


@pytest.mark.parametrize("case", ["plain", "edges"])
def test_auroc_of_classes(case):
    content, arrays = CLASSES
    p, labels = arrays[f"{case}.probs"], arrays[f"{case}.labels"]
    mine = {"auroc_ovr": m.classwise_auroc(p, labels), "auroc_ovo": m.classwise_auroc(p, labels, pairs=True)}
    assert compare(mine, content, case) == 2


@pytest.mark.parametrize("case", ["plain", "ties", "small", "perfect", "equal", "softmax"])
def test_unknown_positive(case):
    content, arrays = OPEN
    mine = {"fpr95_unknown_first": m.fpr_unknown_positive(arrays[f"{case}.known"], arrays[f"{case}.unknown"])}
    assert compare(mine, content, case) == 1


@pytest.mark.parametrize(("case", "n_values"), [("plain", 28), ("empty", 15), ("silent", 28)])
def test_several_labels(case, n_values):
    content, arrays = LABELS
    scores, targets = arrays[f"{case}.scores"], arrays[f"{case}.targets"]
    ap, voc = m.average_precisions(scores, targets), m.average_precisions(scores, targets, "voc2007")
    assert (case == "empty") == bool(ap.isnan().any())
    own = {
        "ap": ap.nan_to_num(0.0),
        "mAP": m.mean_average_precision(scores, targets, absent="zero"),
        "mAP_sklearn": m.mean_average_precision(scores, targets),
        "mAP_voc2010": m.mean_average_precision(scores, targets, "voc2010"),
        "ap_voc2007": voc[~voc.isnan()],
        "mAP_voc2007": m.mean_average_precision(scores, targets, "voc2007"),
        **{name: value for name, value in m.label_scores(m.select_labels(scores), targets).items() if name != "CF1"},
    }
    top3 = m.label_scores(m.select_labels(scores, None, 3), targets)
    own |= {f"zsl.{name[1]}@3": value for name, value in top3.items() if name in ("OP", "OR")} | {
        "zsl.F1@3": top3["OF1"]
    }
    n = compare(own, content, case, factor=1.0, close=1e-6)  # some of the authors' sums are of float32
    difficult = arrays[f"{case}.targets3"]
    meter = {"ap_difficult": m.average_precisions(scores, torch.where(difficult == 0, -1, (difficult == 1).long()))}
    for prefix, k in (("mlgcn", None), ("mlgcn.top3", 3)):
        chosen = m.select_labels(scores, 0.5, k)
        own = {name: v for name, v in m.label_scores(chosen, targets).items() if name != "CF1_mean"}
        n_labels, n_silent = int(targets.sum()), int((chosen.sum(0) == 0).sum())
        assert n_silent == (case == "silent")
        right, n_predicted = own["OR"] / 100 * n_labels, int(chosen.sum()) + n_silent  # as the meter counts it
        meter |= {f"{prefix}.{name}": v for name, v in own.items()}
        meter |= {f"{prefix}.OP": 100 * right / n_predicted, f"{prefix}.OF1": 200 * right / (n_predicted + n_labels)}
        assert case == "silent" or own["OP"] == pytest.approx(meter[f"{prefix}.OP"])
    assert n + compare(meter, content, case, close=1e-6) == n_values


@pytest.mark.parametrize("case", ["plain", "ties", "inverted"])
def test_base_and_new(case):
    content, arrays = WORLD
    base, new = arrays[f"{case}.base_score"], arrays[f"{case}.new_score"]
    base_right = arrays[f"{case}.base_pred"] == arrays[f"{case}.base_label"]
    new_right = arrays[f"{case}.new_pred"] == arrays[f"{case}.new_label"]
    mine = {
        "openworld_auc": m.openworld_auc(base, base_right, new, new_right),
        "openauc": m.open_auc(base, base_right, new),
        "auroc": m.auroc(base, new),
    }
    assert compare(mine, content, case) == 3


def test_joint_answers():
    content, arrays = WORLD
    scores, n_base = arrays["joint.scores"], int(arrays["joint.n_base"])
    mine = m.joint_accuracies(scores, arrays["joint.labels"], torch.arange(scores.shape[1]) < n_base)
    mine["accuracy"] = mine.pop("openworld_accuracy")
    assert compare(mine, content, "joint") == 6
