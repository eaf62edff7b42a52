"""Summaries of tasks: base to new, streams of lessons, and domains; percentages."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

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
Scores: TypeAlias = Mapping[str, Mapping[str, float]]  # test name -> metric -> value


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 when either is 0."""
    return 2 * a * b / (a + b) if a and b else 0.0


def find_class_domains(labels: Tensor, domains: Tensor, n_classes: int) -> Tensor | None:
    """Return the domain (C,) of each class, -1 for one without images; None if a class is in two domains."""
    class_domains = torch.full((n_classes,), -1, dtype=torch.long)
    class_domains[labels] = domains
    return class_domains if bool((class_domains[labels] == domains).all()) else None


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
