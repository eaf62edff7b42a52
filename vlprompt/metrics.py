"""Numbers that say how good an answer is; all in percent."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of right predictions (N,), in percent."""
    return 100 * (predicted == labels).double().mean().item()


def per_class(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Share of right predictions among the images of each class (C,), in percent; nan for a class without images."""
    right = torch.zeros(classes, dtype=torch.double).index_add_(0, labels, (predicted == labels).double())
    return 100 * right / torch.bincount(labels, minlength=classes)


def class_mean(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """Mean over the classes that occur of the share that is right, in percent."""
    return per_class(predicted, labels, classes).nanmean().item()


def macro_f1(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """Mean over the classes that occur of the harmonic mean of precision and recall, in percent.

    Predictions beyond the classes are of none of them.
    """
    count = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels[predicted == labels], minlength=classes).double()
    f1 = 2 * right / (count + torch.bincount(predicted, minlength=classes)[:classes])
    return 100 * f1[count > 0].mean().item()


def named_metric(name: object, predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """What a benchmark tells beside accuracy, in percent: "matthews" (CoLA), "f1" of the last class (MRPC).

    Wang et al., "GLUE", ICLR 2019, arXiv:1804.07461.
    """
    from sklearn.metrics import f1_score, matthews_corrcoef

    right, said = labels.numpy(), predicted.numpy()
    if name == "matthews":
        return {"matthews": 100 * float(matthews_corrcoef(right, said))}
    if name == "f1":
        last = int(labels.max())
        return {"f1": 100 * float(f1_score(right == last, said == last, zero_division=0))}  # pyright: ignore[reportArgumentType]
    return {}


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error of (N, C) over equal-width bins of the top probability, in percent.

    Guo et al., ICML 2017, arXiv:1706.04599.
    """
    sure, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    place = (sure * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.double).index_add_(0, place, right - sure)
    return 100 * gap.abs().sum().item() / len(labels)


def classified(predicted: Tensor, probabilities: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """accuracy, class_mean, macro_f1 and calibration_error of answers among so many classes."""
    return {
        "accuracy": accuracy(predicted, labels),
        "class_mean": class_mean(predicted, labels, classes),
        "macro_f1": macro_f1(predicted, labels, classes),
        "calibration_error": calibration_error(probabilities, labels),
    }


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 when either is 0."""
    return 2 * a * b / (a + b) if a and b else 0.0


def effective_number(shares: Tensor) -> float:
    """How many of M prompts (M,) are in use: exp of the entropy of their shares, between 1 and M."""
    p = shares.double() / shares.double().sum()
    return float((-p * p.clamp(min=1e-300).log()).sum().exp())


def neighbourhood_density(probabilities: Tensor, temperature: float = 0.05, rows: int = 1000) -> float:
    """Soft neighbourhood density of N answers (N, C), in nats: higher where each has many near ones.

    The mean entropy of each answer's softmax over its cosines with all others (Saito et al., ICCV 2021,
    arXiv:2108.10860). rows: how many are compared at a time.
    """
    if len(probabilities) == 1:
        return 0.0  # there is no other
    p = probabilities / probabilities.norm(dim=1, keepdim=True)
    total = 0.0
    for begin in range(0, len(p), rows):
        near = p[begin : begin + rows] @ p.T / temperature
        near.diagonal(begin).fill_(-float("inf"))  # not with itself
        q = near.softmax(1)
        total += float(-(q * q.clamp(min=torch.finfo(q.dtype).tiny).log()).sum(1).double().sum())
    return total / len(p)


def homes(labels: Tensor, domains: Tensor, classes: int) -> Tensor | None:
    """The domain (C,) of each class, -1 for one without images; None when a class is in two domains."""
    home = torch.full((classes,), -1, dtype=torch.long)
    home[labels] = domains
    return home if bool((home[labels] == domains).all()) else None


OF_STREAM = {
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
OF_DOMAINS = {
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
Matrix = list[list[float]]  # a row per lesson learned: the accuracy on each task so far, in percent


def average_accuracy(matrix: Matrix) -> float:
    """Mean over the tasks of the last row: the final average accuracy, A_T of Lopez-Paz and Ranzato, 2017."""
    return sum(matrix[-1]) / len(matrix[-1])


def learning_accuracy(matrix: Matrix) -> float:
    """Mean of the diagonal: how well each task was done just after it was learned."""
    return sum(row[i] for i, row in enumerate(matrix)) / len(matrix)


def backward_transfer(matrix: Matrix) -> float:
    """Mean over all tasks but the last of the last accuracy less that just after learning; arXiv:1706.08840."""
    last = len(matrix) - 1
    return sum(matrix[last][i] - matrix[i][i] for i in range(last)) / last


def forgetting(matrix: Matrix) -> float:
    """Mean over all tasks but the last of the best accuracy that was ever reached, less the last one; never below 0.

    As L2P's and DualPrompt's codes have it; Chaudhry et al., ECCV 2018, arXiv:1801.10112, leave the last lesson out of
    the best, so that a task that it made better counts as negative. Tasks not learned yet do not count.
    """
    last = len(matrix) - 1
    return sum(max(matrix[t][i] for t in range(i, last + 1)) - matrix[last][i] for i in range(last)) / last


def forgetting_by_step(matrix: Matrix) -> float:
    """Mean over the lessons from the second on of the mean loss of accuracy that a lesson brought to earlier tasks.

    What CODA-Prompt's code reports (arXiv:2211.13218); about as many times smaller than `forgetting` as there are
    tasks.
    """
    steps = [sum(before[i] - row[i] for i in range(t)) / t
             for t, (before, row) in enumerate(pairwise(matrix), 1)]  # fmt: skip
    return sum(steps) / len(steps)


def of_stream(scores: Sequence[Mapping[str, Mapping[str, float]]], sizes: Sequence[int]) -> dict[str, float]:
    """All numbers of a stream from the scores after each lesson; those that it can't have are not there.

    scores: "seen" is of all test images so far, "seen/i" of task i, "next" of the task to come, "start i" of task i
    before the first lesson. sizes: test images of each task.
    """
    last, total = scores[-1], len(scores)
    if "seen/0" not in last:  # one test for all lessons
        curve = [row["seen"]["accuracy"] for row in scores]
        found = {"accuracy": curve[-1], "overall": curve[-1], "incremental": sum(curve) / total}
        return found | {k: last["seen"][k] for k in ("calibration_error", "prompts_used") if k in last["seen"]}
    rows = [[row[f"seen/{i}"] for i in range(len(sizes)) if f"seen/{i}" in row] for row in scores]
    matrix = [[part["accuracy"] for part in row] for row in rows]

    def whole(row: Sequence[float]) -> float:
        return sum(a * n for a, n in zip(row, sizes, strict=False)) / sum(sizes[: len(row)])

    found = {"accuracy": average_accuracy(matrix), "overall": whole(matrix[-1])}
    if total > 1:
        found["incremental"] = sum(map(whole, matrix)) / total
        found |= {"forgetting": forgetting(matrix), "forgetting_step": forgetting_by_step(matrix)}
        found["backward"] = backward_transfer(matrix)
        if all("next" in row for row in scores[:-1]):
            gains = [scores[i - 1]["next"]["accuracy"] - scores[0][f"start {i}"]["accuracy"] for i in range(1, total)]
            found["forward"] = sum(gains) / len(gains)
        found["learning"] = learning_accuracy(matrix)
    for name in ("identity", "chosen"):
        if all(name in part for part in rows[-1]):
            found[name] = whole([part[name] for part in rows[-1]])
    return found | {k: last["seen"][k] for k in ("calibration_error", "prompts_used") if k in last.get("seen", {})}


def of_domains(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """All numbers of an adaptation from its last scores; those that it can't have are not there."""
    target = scores["target"]
    found = {k: target[k] for k in ("accuracy", "class_mean")}
    found |= {k: scores[k]["accuracy"] for k in ("source", "zero_shot") if k in scores}
    if "zero_shot" in found:
        found["gain"] = found["accuracy"] - found["zero_shot"]
    found |= {k: v for k, v in scores.get("pseudo", {}).items() if k in ("coverage", "precision")}
    found |= {k: v for k, v in scores.get("rules", {}).items() if k == "oracle"}
    return found | {"calibration_error": target["calibration_error"]}


def entropy(p: Tensor) -> Tensor:
    """In nats, of (..., C) -> (...)."""
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(-1)
