"""Metrics by name with definition, range and source: what `vlprompt eval --metric` and the documentation take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from vlprompt.metrics import answers, calibration, multi_label, open_world, unknown
from vlprompt.metrics.predictions import Predictions

PERCENT, SCIKIT_LEARN = "0 to 100", "scikit-learn"
Row = dict[str, object]


@dataclass(frozen=True)
class Metric:
    """A metric of predictions.

    Args:
        definition: in one sentence.
        limits: the least and the greatest value.
        source: the paper or library that defines it.
        compute: its value.
        per_item: values (N,) whose mean it is; None for a metric that is no mean over items.
    """

    definition: str
    limits: str
    source: str
    compute: Callable[[Predictions], float]
    per_item: Callable[[Predictions], Tensor] | None = None


@dataclass(frozen=True)
class MetricTable:
    """Several numbers of predictions; arguments as of `Metric`.

    Args:
        compute: its rows.
    """

    definition: str
    limits: str
    source: str
    compute: Callable[[Predictions], list[Row]]


def _average(p: Predictions, average: str, part: int) -> float:
    return float(answers.precision_recall_f1(p.predicted, p.one_label, len(p.names), average)[part])


def _item_likelihoods(p: Predictions) -> Tensor:
    eps = torch.finfo(torch.double).eps
    return -p.probabilities.double().gather(1, p.one_label[:, None]).clamp(eps, 1 - eps).log()[:, 0]


def _item_brier(p: Predictions) -> Tensor:
    return (p.probabilities.double() - torch.nn.functional.one_hot(p.one_label, len(p.names))).square().sum(1)


def _top_k(k: int) -> Metric:
    def find_hits(p: Predictions) -> Tensor:
        return 100 * answers.find_top_hits(p.probabilities, p.one_label, k).double()

    text = f"share of the items whose label is among the {k} most probable classes"
    return Metric(text, PERCENT, SCIKIT_LEARN, lambda p: find_hits(p).mean().item(), find_hits)


def _build_answer_metrics() -> dict[str, Metric]:
    def correct(p: Predictions) -> Tensor:
        return 100 * (p.predicted == p.one_label).double()

    def of_classes(function: Callable[[Tensor, Tensor, int], float]) -> Callable[[Predictions], float]:
        return lambda p: function(p.predicted, p.one_label, len(p.names))

    text = answers.ANSWER_METRICS
    built = {
        "accuracy": Metric(text["accuracy"], PERCENT, SCIKIT_LEARN, lambda p: correct(p).mean().item(), correct),
        "top3": _top_k(3),
        "top5": _top_k(5),
        "class_mean": Metric(
            f"balanced accuracy: {text['class_mean']}", PERCENT, SCIKIT_LEARN, of_classes(answers.mean_class_accuracy)
        ),
        "class_mean_adjusted": Metric(
            "the same adjusted for chance, (b - 1/K) / (1 - 1/K) of the K classes that occur",
            "-100 / (K - 1) to 100",
            SCIKIT_LEARN,
            of_classes(answers.adjusted_balanced_accuracy),
        ),
        "macro_f1": Metric(
            f"{text['macro_f1']}; over the classes that occur", PERCENT, "Dassl", of_classes(answers.macro_f1)
        ),
    }
    return built | _build_averages() | _build_agreements()


def _build_averages() -> dict[str, Metric]:
    built = dict[str, Metric]()
    for average, words in (
        ("macro", "mean over all classes, those without items included, of"),
        ("weighted", "mean over classes, weighted by their items, of"),
        ("micro", "over all items counted together,"),
    ):
        for part, name in enumerate(("precision", "recall", "f1")):
            key = "macro_f1_all" if (average, name) == ("macro", "f1") else f"{average}_{name}"
            compute = partial(_average, average=average, part=part)
            built[key] = Metric(f"{words} {name}; 0 for 0 / 0", PERCENT, SCIKIT_LEARN, compute)
    return built


def _build_agreements() -> dict[str, Metric]:
    def of_pairs(p: Predictions, pairs: bool) -> float:
        return answers.classwise_auroc(p.probabilities, p.one_label, pairs)

    correlation, kappa, limits = answers.matthews_correlation, answers.cohen_kappa, "-100 to 100"
    text = "Matthews correlation times 100"
    matthews = Metric(text, limits, SCIKIT_LEARN, lambda p: correlation(p.predicted, p.one_label))
    text = "Cohen's kappa times 100, the agreement beyond chance"
    agreement = Metric(text, limits, SCIKIT_LEARN, lambda p: kappa(p.predicted, p.one_label))
    text = "mean over classes of the AUROC of a class against the rest; every class needs items"
    rest = Metric(text, PERCENT, SCIKIT_LEARN, partial(of_pairs, pairs=False))
    text = "mean over pairs of classes of the AUROC of one against the other (Hand and Till, 2001)"
    one = Metric(text, PERCENT, SCIKIT_LEARN, partial(of_pairs, pairs=True))
    return {"matthews": matthews, "kappa": agreement, "auroc_ovr": rest, "auroc_ovo": one}


def _build_calibration_metrics() -> dict[str, Metric]:
    built, guo = dict[str, Metric](), "Guo et al., arXiv:1706.04599"
    nixon, mukhoti = "Nixon et al., arXiv:1904.01685", "Mukhoti et al., arXiv:2002.09437"

    def by_class(p: Predictions, n: int, equal_mass: bool) -> float:
        return calibration.class_calibration_error(p.probabilities, p.one_label, n, equal_mass)

    def add(name: str, text: str, source: str, compute: Callable[[Predictions, int], float], *sizes: int) -> None:
        for n in sizes:
            built[f"{name}{n}"] = Metric(text.format(n=n), PERCENT, source, lambda p, n=n: compute(p, n))

    def by_width(p: Predictions, n: int) -> float:
        return calibration.confidence_error(p.confidence, p.top_correct, n)

    def by_mass(p: Predictions, n: int) -> float:
        return calibration.adaptive_confidence_error(p.confidence, p.top_correct, n)

    text = "expected calibration error in {n} equally wide bins (lower, upper] of the top probability: mean of the "
    text += "difference between it and the share right, weighted by items"
    add("ece", text, guo, by_width, 10, 15, 20)
    built["calibration_error"] = replace(built["ece15"], definition="ece15 by the name that results and tables have")
    text = "the same in {n} bins of equally many items (AdaECE); the least sure item is in none"
    add("ada_ece", text, mukhoti, by_mass, 10, 15, 20)
    for name, key, text in (
        ("mce", "mce", "largest difference of a bin of ece15"),
        ("rmsce", "rmsce", "root of the mean squared difference of the bins of ece15, weighted by items"),
        ("average_ce", "average_calibration_error", "mean difference of the bins of ece15 with items, unweighted"),
    ):
        add(name, text, guo, lambda p, n, key=key: calibration.bin_gaps(p.confidence, p.top_correct, n)[key], 15)
    text = "mean over classes of the error of all its probabilities in {n} bins [lower, upper) of equally many (ACE)"
    add("ace", text, nixon, lambda p, n: by_class(p, n, True), 10, 15, 20)
    add("sce", "the same in {n} equally wide bins (SCE)", nixon, lambda p, n: by_class(p, n, False), 15)
    classwise, kull = calibration.classwise_calibration_error, "Kull et al., arXiv:1910.12656"
    text = "the same in {n} equally wide bins (lower, upper]"
    add("classwise_ece", text, kull, lambda p, n: classwise(p.probabilities, p.one_label, n), 15)
    return built | _build_proper_scores()


def _build_proper_scores() -> dict[str, Metric]:
    text, nll, brier = calibration.CALIBRATION_METRICS, _item_likelihoods, _item_brier
    return {
        "nll": Metric(text["nll"], "0 to 36.04", SCIKIT_LEARN, lambda p: nll(p).mean().item(), nll),
        "brier": Metric(text["brier"], "0 to 2", "Brier, 1950", lambda p: brier(p).mean().item(), brier),
    }


def _build_label_metrics() -> dict[str, Metric]:
    built = dict[str, Metric]()
    rules: Mapping[str, tuple[multi_label.ApRule, str, str]] = {
        "mAP": ("all_points", "recall gained times precision, over all thresholds", SCIKIT_LEARN),
        "mAP_voc2007": ("voc2007", "best precision at the recalls 0, .1, ..., 1 or more", "PASCAL VOC 2007"),
        "mAP_voc2010": ("voc2010", "area under the best precision at each recall or more", "PASCAL VOC 2010"),
    }
    for name, (rule, words, source) in rules.items():
        text = f"mean over classes of the average precision ({words}); a class that is never positive is left out"
        compute = partial(
            lambda p, rule: multi_label.mean_average_precision(p.label_scores, p.label_matrix, rule), rule=rule
        )
        built[name] = Metric(text, PERCENT, source, compute)
    built["mAP_absent_zero"] = Metric(
        "mAP where a class that is never positive counts 0",
        PERCENT,
        "codes of ASL, DualCoOp and TaI-DPT",
        lambda p: multi_label.mean_average_precision(p.label_scores, p.label_matrix, absent="zero"),
    )
    ml_gcn, dualcoop = "Chen et al., arXiv:1904.03582", "DualCoOp's code, arXiv:2206.09541"
    texts = {
        "CP": ("mean over classes of the precision of the labels above the threshold", ml_gcn),
        "CR": ("mean over classes of their recall", ml_gcn),
        "CF1": ("harmonic mean of CP and CR", ml_gcn),
        "CF1_mean": ("mean over classes of F1", dualcoop),
        "OP": ("precision of all labels counted together", ml_gcn),
        "OR": ("recall of all labels counted together", ml_gcn),
        "OF1": ("harmonic mean of OP and OR", ml_gcn),
    }

    def score(p: Predictions, key: str, k: int | None = None) -> float:
        chosen = multi_label.select_labels(p.label_scores, p.label_threshold if k is None else None, k)
        return multi_label.label_scores(chosen, p.several_labels)[key]

    for name, (text, source) in texts.items():
        built[name] = Metric(text, PERCENT, source, partial(score, key=name))
    for k in (3, 5):
        text = f"OF1 where exactly {k} labels an item are predicted"
        built[f"F1@{k}"] = Metric(text, PERCENT, dualcoop, partial(score, key="OF1", k=k))
    return built


def _build_open_metrics() -> dict[str, Metric]:
    def of_sides(function: Callable[[Tensor, Tensor], float]) -> Callable[[Predictions], float]:
        return lambda p: function(p.known_score[p.item_is_known], p.known_score[~p.item_is_known])

    def joint(p: Predictions, key: str) -> float:
        return open_world.joint_accuracies(p.probabilities, p.one_label, p.known_classes)[key]

    text, functions = unknown.UNKNOWN_METRICS, unknown.UNKNOWN_FUNCTIONS
    mcm = "codes of MCM (arXiv:2211.13445) and LoCoOp (arXiv:2306.01293)"
    built = {
        "auroc": Metric(text["auroc"], PERCENT, SCIKIT_LEARN, of_sides(functions["auroc"])),
        "aupr_in": Metric(text["aupr_in"], PERCENT, SCIKIT_LEARN, of_sides(functions["aupr_in"])),
        "aupr_out": Metric(text["aupr_out"], PERCENT, SCIKIT_LEARN, of_sides(functions["aupr_out"])),
        "fpr95": Metric(f"(a) {text['fpr95']}", PERCENT, mcm, of_sides(functions["fpr95"])),
        "fpr95_at_least": Metric(
            f"(b) {text['fpr95_at_least']}", PERCENT, "OpenOOD", of_sides(functions["fpr95_at_least"])
        ),
        "fpr95_unknown": Metric(
            "(c) the unknown positive: share of the known rejected at the strictest threshold that rejects 95 % of the "
            "unknown or more",
            PERCENT,
            SCIKIT_LEARN,
            of_sides(unknown.fpr_unknown_positive),
        ),
    }
    texts = {
        "base": "accuracy on the items of known classes, among these",
        "new": "accuracy on the other items, among the other classes",
        "harmonic": "harmonic mean of base and new",
        "base_all": "accuracy on the items of known classes, among all",
        "new_all": "accuracy on the other items, among all classes",
        "openworld_accuracy": "accuracy on all items, among all classes",
    }
    for name, definition in texts.items():
        built[name] = Metric(definition, PERCENT, "DeCoOp, arXiv:2406.00345", partial(joint, key=name))
    return built | _build_pair_metrics()


def _build_pair_metrics() -> dict[str, Metric]:
    def named_rightly(p: Predictions) -> Tensor:
        """Whether each item is named rightly among the classes of its own kind."""
        other_kind = p.known_classes != p.item_is_known[:, None]
        return p.probabilities.masked_fill(other_kind, -1).argmax(1) == p.one_label

    def pairs(p: Predictions, needs_both: bool) -> float:
        known, right = p.item_is_known, named_rightly(p)
        right = right if needs_both else right | ~known
        return open_world.openworld_auc(p.known_score[known], right[known], p.known_score[~known], right[~known])

    def h_score(p: Predictions) -> float:
        n_known = int(p.known_classes.sum())
        place = torch.full((len(p.names) + 1,), n_known)  # of an answer: no answer is no known class either
        place[: len(p.names)][p.known_classes] = torch.arange(n_known)
        return open_world.h_score(place[p.predicted], place[p.one_label], n_known)

    return {
        "openworld_auc": Metric(
            "share of the pairs of a known item and another that are both named rightly among the classes of their "
            "kind and of which the known one has the higher score, plus half those of equal scores",
            PERCENT,
            "Hua et al., arXiv:2505.05180",
            partial(pairs, needs_both=True),
        ),
        "open_auc": Metric(
            "the same where only the known item must be named rightly; the area under OSCR",
            PERCENT,
            "Wang et al., arXiv:2210.13458; Dhamija et al., arXiv:1811.04110",
            partial(pairs, needs_both=False),
        ),
        "h_score": Metric(
            "harmonic mean of the known classes' mean accuracy and the share of the other items that no known class is "
            "answered for",
            PERCENT,
            "Fu et al., ECCV 2020; Bucci et al., arXiv:2007.12360",
            h_score,
        ),
    }


METRICS: Mapping[str, Mapping[str, Metric]] = {  # by what they need
    "one label": _build_answer_metrics(),
    "probabilities of one label": _build_calibration_metrics(),
    "several labels": _build_label_metrics(),
    "known and other classes": _build_open_metrics(),
}
