"""Metrics of answers, streams and adaptations; percentages unless said otherwise."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

BENCHMARK_METRICS = ("accuracy", "macro_f1", "f1", "matthews")  # on a card; the first two every result has


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the percentage of correct predictions (N,)."""
    return 100 * (predicted == labels).double().mean().item()


def per_class_accuracy(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Return the accuracy of each class (C,), in percent; nan for a class without images."""
    correct = torch.zeros(n_classes, dtype=torch.double).index_add_(0, labels, (predicted == labels).double())
    return 100 * correct / torch.bincount(labels, minlength=n_classes)


def mean_class_accuracy(predicted: Tensor, labels: Tensor, n_classes: int) -> float:
    """Return the mean accuracy over the classes that occur, in percent."""
    return per_class_accuracy(predicted, labels, n_classes).nanmean().item()


def macro_f1(predicted: Tensor, labels: Tensor, n_classes: int) -> float:
    """Return the mean F1 over the classes that occur, in percent; predictions beyond the classes count for none."""
    count = torch.bincount(labels, minlength=n_classes)
    correct = torch.bincount(labels[predicted == labels], minlength=n_classes).double()
    f1 = 2 * correct / (count + torch.bincount(predicted, minlength=n_classes)[:n_classes])
    return 100 * f1[count > 0].mean().item()


def benchmark_metric(name: object, predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Return a benchmark's metric besides accuracy, in percent: "matthews" (CoLA), "f1" of the last class (MRPC).

    Wang et al., "GLUE", ICLR 2019, arXiv:1804.07461.

    Raises:
        ValueError: for a metric that there is not; None is no error.
    """
    if name is not None and name not in BENCHMARK_METRICS:
        raise ValueError(f"metric: expected one of {', '.join(BENCHMARK_METRICS)}, got {name!r}. Correct the card.")
    if name not in ("matthews", "f1"):
        return {}
    from sklearn.metrics import f1_score, matthews_corrcoef

    y_true, y_pred = labels.numpy(), predicted.numpy()
    if name == "matthews":
        return {"matthews": 100 * float(matthews_corrcoef(y_true, y_pred))}
    last = int(labels.max())
    return {"f1": 100 * float(f1_score(y_true == last, y_pred == last, zero_division=0))}  # pyright: ignore[reportArgumentType]


def calibration_error(probabilities: Tensor, labels: Tensor, n_bins: int = 15) -> float:
    """Return the expected calibration error of (N, C) over equal-width bins of the top probability, in percent.

    Bins are (lower, upper]. Guo et al., ICML 2017, arXiv:1706.04599.
    """
    confidence, predicted = probabilities.double().max(1)
    correct = (predicted == labels).double()
    bins = (confidence * n_bins).ceil().long().clamp(1, n_bins) - 1
    gap = torch.zeros(n_bins, dtype=torch.double).index_add_(0, bins, correct - confidence)
    return 100 * gap.abs().sum().item() / len(labels)


def adaptive_calibration_error(probabilities: Tensor, labels: Tensor, n_bins: int = 15) -> float:
    """Return the calibration error of (N, C) over bins of equally many items (AdaECE), in percent.

    Bins are (lower, upper], so that the least sure item is in none, as in the authors' code (Mukhoti et al., NeurIPS
    2020, arXiv:2002.09437).
    """
    confidence, predicted = probabilities.double().max(1)
    n, correct = len(labels), (predicted == labels).double()
    order = confidence.sort().values
    edges = torch.linspace(0, n, n_bins + 1, dtype=torch.double).clamp(max=n - 1)
    lower, rest = edges.floor().long(), edges.frac()
    values = order[lower] + rest * (order[(lower + 1).clamp(max=n - 1)] - order[lower])
    in_bin = (confidence[:, None] > values[:-1]) & (confidence[:, None] <= values[1:])  # (N, bins)
    return 100 * (in_bin * (correct - confidence)[:, None]).sum(0).abs().sum().item() / n


def negative_log_likelihood(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood of (N, C) in nats; probabilities are clipped by 2.2e-16 at both ends."""
    true, eps = probabilities.double().gather(1, labels[:, None]), torch.finfo(torch.double).eps
    return -true.clamp(eps, 1 - eps).log().mean().item()


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Return the Brier score of (N, C), 0 to 2: the mean over items of the squared differences of all classes."""
    p = probabilities.double()
    return (p - torch.nn.functional.one_hot(labels, p.shape[1])).square().sum(1).mean().item()


def calibration_scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the metrics of `CALIBRATION_METRICS`."""
    ece = {f"ece{n_bins}": calibration_error(probabilities, labels, n_bins) for n_bins in (10, 15)}
    nll, brier = negative_log_likelihood(probabilities, labels), brier_score(probabilities, labels)
    return {**ece, "ada_ece15": adaptive_calibration_error(probabilities, labels), "nll": nll, "brier": brier}


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Return the area under the ROC curve in percent: P(known > unknown) + 1/2 P(known = unknown).

    Args:
        known: scores (N,) of items of known classes, high for known.
        unknown: scores (M,) of items of unknown classes.

    Raises:
        ValueError: for no scores, and for scores that are NaN.
    """
    known, unknown = _require_scores(known, unknown)
    order = unknown.sort().values
    below, up_to = (torch.searchsorted(order, known, right=right) for right in (False, True))
    return 100 * int((below + up_to).sum()) / (2 * len(known) * len(unknown))


def aupr(known: Tensor, unknown: Tensor) -> float:
    """Return the area under the precision-recall curve in percent, known positive (AUPR-in); arguments as in `auroc`.

    The sum over distinct thresholds of the recall gained times the precision, without interpolation. AUPR-out, unknown
    positive, is `aupr(-unknown, -known)`.
    """
    n_known, n_unknown = _count_accepted(known, unknown)
    gained = n_known.diff(prepend=torch.zeros(1, dtype=torch.double))
    return 100 * (gained * n_known / (n_known + n_unknown)).sum().item() / n_known[-1].item()


def fpr_at_recall(known: Tensor, unknown: Tensor, recall: float = 0.95, closest: bool = True) -> float:
    """Return the percentage of unknown items accepted where this share of the known is; arguments as in `auroc`.

    Args:
        known: as in `auroc`.
        unknown: as in `auroc`.
        recall: share of the known that is to be accepted.
        closest: True for the threshold whose recall is closest, from the loosest that matters (the strictest that
            accepts all known) to ever stricter ones, the first of equals: recall may be below. So do the codes of
            Outlier Exposure, MCM and LoCoOp. False for the strictest threshold with at least this recall, as OpenOOD.
    """
    n_known, n_unknown = _count_accepted(known, unknown)
    reached, accepted = n_known / n_known[-1], n_unknown / len(unknown)
    if not closest:
        return 100 * accepted[int((reached >= recall).nonzero()[0])].item()
    end = int((reached == 1).nonzero()[0]) + 1
    return 100 * accepted[:end].flip(0)[int((reached[:end].flip(0) - recall).abs().argmin())].item()


def unknown_scores(known: Tensor, unknown: Tensor) -> dict[str, float]:
    """Return the metrics of `UNKNOWN_METRICS`; arguments as in `auroc`."""
    fpr95, at_least = (fpr_at_recall(known, unknown, closest=closest) for closest in (True, False))
    areas = {"aupr_in": aupr(known, unknown), "aupr_out": aupr(-unknown, -known)}
    return {"auroc": auroc(known, unknown), "fpr95": fpr95, "fpr95_at_least": at_least} | areas


def _count_accepted(known: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Known and unknown items accepted (score >= threshold) at each distinct threshold, from the strictest on."""
    known, unknown = _require_scores(known, unknown)
    scores, order = torch.cat([known, unknown]).sort(descending=True)
    n_known = (order < len(known)).double().cumsum(0)
    is_last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])
    n_accepted = torch.arange(1, len(scores) + 1, dtype=torch.double)
    return n_known[is_last], (n_accepted - n_known)[is_last]


def _require_scores(known: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    for name, scores in (("known", known), ("unknown", unknown)):
        if not len(scores):
            raise ValueError(f"{name}: expected the scores of at least one item, got none. Take a split with items.")
        if n_nan := int(scores.isnan().sum()):
            raise ValueError(
                f"{name}: expected scores that are numbers, got {n_nan} NaN. Check the backbone's weights."
            )
    return known.double().contiguous(), unknown.double().contiguous()


def classification_scores(predicted: Tensor, probabilities: Tensor, labels: Tensor, n_classes: int) -> dict[str, float]:
    """Return accuracy, class_mean, macro_f1 and calibration_error."""
    class_mean, f1 = (f(predicted, labels, n_classes) for f in (mean_class_accuracy, macro_f1))
    shares = {"accuracy": accuracy(predicted, labels), "class_mean": class_mean, "macro_f1": f1}
    return shares | {"calibration_error": calibration_error(probabilities, labels)}


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 when either is 0."""
    return 2 * a * b / (a + b) if a and b else 0.0


def effective_prompts(usage: Tensor) -> float:
    """Return the effective number of M prompts: exp of the entropy of their usage (M,), between 1 and M."""
    p = usage.double() / usage.double().sum()
    return float((-p * p.clamp(min=1e-300).log()).sum().exp())


def neighbourhood_density(probabilities: Tensor, temperature: float = 0.05, chunk_size: int = 1000) -> float:
    """Return the soft neighbourhood density of N answers, in nats: higher if each has many near neighbours.

    The mean entropy of each answer's softmax over its cosines with all others (Saito et al., ICCV 2021,
    arXiv:2108.10860).

    Args:
        probabilities: (N, C).
        temperature: of the softmax.
        chunk_size: answers that are compared at a time.
    """
    if len(probabilities) == 1:
        return 0.0
    p = probabilities / probabilities.norm(dim=1, keepdim=True)
    total = 0.0
    for begin in range(0, len(p), chunk_size):
        similarity = p[begin : begin + chunk_size] @ p.T / temperature
        similarity.diagonal(begin).fill_(-float("inf"))  # an answer is no neighbour of itself
        q = similarity.softmax(1)
        total += float(-(q * q.clamp(min=torch.finfo(q.dtype).tiny).log()).sum(1).double().sum())
    return total / len(p)


def find_class_domains(labels: Tensor, domains: Tensor, n_classes: int) -> Tensor | None:
    """Return the domain (C,) of each class, -1 for one without images; None if a class is in two domains."""
    class_domains = torch.full((n_classes,), -1, dtype=torch.long)
    class_domains[labels] = domains
    return class_domains if bool((class_domains[labels] == domains).all()) else None


ANSWER_METRICS = {  # of classes; a result has the first four for every test
    "accuracy": "share of the items right",
    "class_mean": "mean over the classes of the share right, so that rare classes count as much as common ones",
    "macro_f1": "mean over the classes of F1, the harmonic mean of precision and recall",
    "calibration_error": "expected calibration error: mean over 15 bins of the top probability, weighted by their "
    "items, of the difference between it and the share right",
    "f1": "F1 of the last class; of datasets whose card has this metric (MRPC)",
    "matthews": "Matthews correlation times 100; of datasets whose card has this metric (CoLA)",
}
UNKNOWN_METRICS = {  # of scores, high for known; known items against unknown ones
    "auroc": "probability that a known item has a higher score than an unknown one, plus half that of equal scores",
    "fpr95": "share of the unknown accepted at the threshold whose share of the known accepted is closest to 95 %, of "
    "equals the loosest (Outlier Exposure's, MCM's and LoCoOp's codes); it may accept fewer than 95 % of the known",
    "fpr95_at_least": "share of the unknown accepted at the strictest threshold that accepts 95 % of the known or more",
    "aupr_in": "area under precision and recall, known positive, summed over distinct thresholds without interpolation",
    "aupr_out": "the same, unknown positive, scores negated",
}
REJECTION_METRICS = {  # where a threshold was chosen
    "coverage": "share of the test items that are accepted, so not answered `unknown`",
    "accepted_accuracy": "share right of those that are accepted",
    "unknown_accepted": "share of the items of `--unknown` that are accepted",
}
CALIBRATION_METRICS = {  # before and after temperature scaling
    "ece10": "expected calibration error in 10 bins (lower, upper] of the top probability",
    "ece15": "the same in 15 bins",
    "ada_ece15": "the same in 15 bins of equally many items (AdaECE); the least sure item is in none",
    "nll": "mean negative log-likelihood of the true class in nats; no percentage",
    "brier": "mean over items of the squared differences between probabilities and truth, summed over classes, 0 to 2; "
    "no percentage",
}
RESPONSE_METRICS = {
    "perplexity": "exp of the mean negative log-likelihood of a response's tokens, its end included; no percentage",
    "token_accuracy": "share of a response's tokens that are the likeliest after those before them",
    "exact_match": "share of the generated texts that equal the reference, case and space aside (task.max_new_tokens)",
    "token_f1": "mean F1 of the words of a generated text and those of the reference (task.max_new_tokens)",
}
BASE_TO_NEW_METRICS = {
    "base": "accuracy on the base classes, among themselves",
    "new": "accuracy on the new classes, among themselves",
    "harmonic": "harmonic mean of base and new",
    "joint": "accuracy on all classes, among all of them",
}
TRANSFER_METRICS = {
    "source": "accuracy on the dataset that was learned from",
    "NAME": "accuracy on a target, among its own classes; one key for each target",
    "average": "mean over the targets",
}
CONTINUAL_METRICS = {
    "accuracy": "mean over the tasks of the last accuracies (A_T)",
    "overall": "share of all test images right at the end",
    "incremental": "mean over the lessons of the share right of all test images so far",
    "forgetting": "mean over earlier tasks of the best accuracy ever, less the last",
    "forgetting_step": "mean over lessons of the mean loss that one lesson brought to earlier tasks",
    "backward": "mean over earlier tasks of the last accuracy, less that just after learning",
    "forward": "mean over later tasks of the accuracy just before learning, less that before the first lesson",
    "learning": "mean over the tasks of the accuracy just after learning",
    "identity": "share of test images whose answer is a class of the right task",
    "chosen": "share of test images for which the method takes the right task's prompts",
    "calibration_error": "expected calibration error at the end, over all test images",
    "prompts_used": "effective number of prompts at the end, exp of the entropy of their shares",
}
DOMAIN_METRICS = {
    "accuracy": "share of the target's test images right",
    "class_mean": "mean over the target's classes of the share right",
    "source": "share right of source images that were held out",
    "zero_shot": "accuracy on the target of the same frozen CLIP with its dataset's template",
    "gain": "accuracy less zero_shot",
    "coverage": "share of target images with a pseudo-label, as the last epoch saw them",
    "precision": "share of these whose pseudo-label is right",
    "oracle": "accuracy of the epoch that is best on the target's test labels; no result",
    "calibration_error": "expected calibration error on the target",
}
AccuracyMatrix = list[list[float]]  # a row per lesson learned: the accuracy on each task so far, in percent


def average_accuracy(matrix: AccuracyMatrix) -> float:
    """Return the mean of the last row: the final average accuracy, A_T of Lopez-Paz and Ranzato, 2017."""
    return sum(matrix[-1]) / len(matrix[-1])


def learning_accuracy(matrix: AccuracyMatrix) -> float:
    """Return the mean of the diagonal: the accuracy of each task just after it was learned."""
    return sum(row[i] for i, row in enumerate(matrix)) / len(matrix)


def backward_transfer(matrix: AccuracyMatrix) -> float:
    """Return the mean, over all tasks but the last, of the last accuracy less that after learning; arXiv:1706.08840."""
    last = len(matrix) - 1
    return sum(matrix[last][i] - matrix[i][i] for i in range(last)) / last


def forgetting(matrix: AccuracyMatrix) -> float:
    """Return the mean, over all tasks but the last, of the best accuracy ever less the last one; never below 0.

    As L2P's and DualPrompt's codes have it; Chaudhry et al., ECCV 2018, arXiv:1801.10112, leave the last lesson out of
    the best, so that a task that it made better counts as negative. Tasks not learned yet do not count.
    """
    last = len(matrix) - 1
    return sum(max(matrix[t][i] for t in range(i, last + 1)) - matrix[last][i] for i in range(last)) / last


def stepwise_forgetting(matrix: AccuracyMatrix) -> float:
    """Return the mean, over lessons from the second on, of the mean accuracy that a lesson cost earlier tasks.

    What CODA-Prompt's code reports (arXiv:2211.13218); about as many times smaller than `forgetting` as there are
    tasks.
    """
    steps = [sum(previous[i] - row[i] for i in range(t)) / t for t, (previous, row) in enumerate(pairwise(matrix), 1)]
    return sum(steps) / len(steps)


Scores: TypeAlias = Mapping[str, Mapping[str, float]]  # test name -> metric -> value


def continual_summary(scores: Sequence[Scores], sizes: Sequence[int]) -> dict[str, float]:
    """Return all metrics of a stream that its scores allow.

    Args:
        scores: after each lesson: "seen" is of all test images so far, "seen/i" of task i, "next" of the next task,
            "start i" of task i before the first lesson.
        sizes: test images of each task.
    """
    last, n_lessons = scores[-1], len(scores)
    if "seen/0" not in last:  # one test for all lessons
        curve = [row["seen"]["accuracy"] for row in scores]
        summary = {"accuracy": curve[-1], "overall": curve[-1], "incremental": sum(curve) / n_lessons}
        return summary | _final_metrics(last)
    rows = [[row[f"seen/{i}"] for i in range(len(sizes)) if f"seen/{i}" in row] for row in scores]
    matrix = [[task["accuracy"] for task in row] for row in rows]
    summary = {"accuracy": average_accuracy(matrix), "overall": _weighted_mean(matrix[-1], sizes)}
    if n_lessons > 1:
        summary["incremental"] = sum(_weighted_mean(row, sizes) for row in matrix) / n_lessons
        summary |= {"forgetting": forgetting(matrix), "forgetting_step": stepwise_forgetting(matrix)}
        summary["backward"] = backward_transfer(matrix)
        if all("next" in row for row in scores[:-1]):
            summary["forward"] = _forward_transfer(scores)
        summary["learning"] = learning_accuracy(matrix)
    for name in ("identity", "chosen"):
        if all(name in task for task in rows[-1]):
            summary[name] = _weighted_mean([task[name] for task in rows[-1]], sizes)
    return summary | _final_metrics(last)


def _weighted_mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean over test images of values of the first tasks."""
    return sum(a * n for a, n in zip(values, sizes, strict=False)) / sum(sizes[: len(values)])


def _forward_transfer(scores: Sequence[Scores]) -> float:
    lessons = range(1, len(scores))
    gains = [scores[i - 1]["next"]["accuracy"] - scores[0][f"start {i}"]["accuracy"] for i in lessons]
    return sum(gains) / len(gains)


def _final_metrics(scores: Scores) -> dict[str, float]:
    return {k: scores["seen"][k] for k in ("calibration_error", "prompts_used") if k in scores.get("seen", {})}


def domain_summary(scores: Scores) -> dict[str, float]:
    """Return all metrics of an adaptation that its last scores allow."""
    target = scores["target"]
    summary = {k: target[k] for k in ("accuracy", "class_mean")}
    summary |= {k: scores[k]["accuracy"] for k in ("source", "zero_shot") if k in scores}
    if "zero_shot" in summary:
        summary["gain"] = summary["accuracy"] - summary["zero_shot"]
    summary |= {k: v for k, v in scores.get("pseudo_labels", {}).items() if k in ("coverage", "precision")}
    summary |= {k: v for k, v in scores.get("rules", {}).items() if k == "oracle"}
    return summary | {"calibration_error": target["calibration_error"]}


def entropy(p: Tensor) -> Tensor:
    """Return the entropy in nats, (..., C) -> (...)."""
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(-1)
