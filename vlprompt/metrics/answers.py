"""Metrics of one answer per item: accuracy, precision, recall, F1; percentages unless said otherwise."""

from typing import Any

import torch
from torch import Tensor

from vlprompt.metrics.calibration import calibration_error

BENCHMARK_METRICS = ("accuracy", "macro_f1", "f1", "matthews")  # on a card; the first two every result has
ANSWER_METRICS = {  # of classes; a result has the first four for every test
    "accuracy": "share of the items right",
    "class_mean": "mean over the classes of the share right, so that rare classes count as much as common ones",
    "macro_f1": "mean over the classes of F1, the harmonic mean of precision and recall",
    "calibration_error": "expected calibration error: mean over 15 bins of the top probability, weighted by their "
    "items, of the difference between it and the share right",
    "f1": "F1 of the last class; of datasets whose card has this metric (MRPC)",
    "matthews": "Matthews correlation times 100; of datasets whose card has this metric (CoLA)",
}


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
    if name == "matthews":
        return {"matthews": matthews_correlation(predicted, labels)}
    from sklearn.metrics import f1_score

    y_true, y_pred, last = labels.numpy(), predicted.numpy(), int(labels.max())
    return {"f1": 100 * float(f1_score(y_true == last, y_pred == last, zero_division=0))}  # pyright: ignore[reportArgumentType]


def classification_scores(predicted: Tensor, probabilities: Tensor, labels: Tensor, n_classes: int) -> dict[str, float]:
    """Return accuracy, class_mean, macro_f1 and calibration_error."""
    class_mean, f1 = (f(predicted, labels, n_classes) for f in (mean_class_accuracy, macro_f1))
    shares = {"accuracy": accuracy(predicted, labels), "class_mean": class_mean, "macro_f1": f1}
    return shares | {"calibration_error": calibration_error(probabilities, labels)}


def confusion_matrix(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Count the items of each class (row) that were answered as each (column); equal to scikit-learn's.

    Returns:
        (C, C) of integers; (C, C + 1) where some predictions are C, which is no answer.
    """
    require_labels(labels, n_classes)
    flat = labels.long() * (n_classes + 1) + predicted.long().clamp(max=n_classes)
    counts = torch.bincount(flat, minlength=n_classes * (n_classes + 1)).view(n_classes, n_classes + 1)
    return counts if bool(counts[:, n_classes].any()) else counts[:, :n_classes]


def precision_recall_f1(
    predicted: Tensor, labels: Tensor, n_classes: int, average: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return precision, recall and F1 in percent, 0 where they are 0 / 0 (scikit-learn).

    Args:
        predicted: (N,); C is no answer, which is wrong for every class.
        labels: (N,).
        n_classes: C.
        average: None for one value a class (C,); "macro" for the mean over all C classes, those without items included;
            "weighted" for the mean weighted by the items of a class; "micro" for all items counted together, which is
            the accuracy where each has an answer.
    """
    from sklearn.metrics import precision_recall_fscore_support

    require_labels(labels, n_classes)
    zero: Any = 0  # its annotations name the string only
    values = precision_recall_fscore_support(
        labels.numpy(), predicted.numpy(), labels=range(n_classes), average=average, zero_division=zero
    )
    precision, recall, f1 = (100 * torch.as_tensor(value, dtype=torch.double) for value in values[:3])
    return precision, recall, f1


def find_top_hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return whether the label is among the k highest scores (N, C) of each item; of equal scores the last classes."""
    return (scores.argsort(dim=1, stable=True).flip(1)[:, :k] == labels[:, None]).any(1)


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int = 5) -> float:
    """Return the percentage of items whose label is among the k highest scores (N, C); equal to scikit-learn's."""
    require_labels(labels, scores.shape[1])
    return 100 * find_top_hits(scores, labels, k).double().mean().item()


def adjusted_balanced_accuracy(predicted: Tensor, labels: Tensor, n_classes: int) -> float:
    """Return the mean recall over the K classes that occur, adjusted for chance: (b - 1/K) / (1 - 1/K), in percent.

    Equal to scikit-learn's balanced_accuracy_score(adjusted=True).

    Raises:
        ValueError: where one class occurs alone, of which it is 0 / 0.
    """
    require_labels(labels, n_classes)
    if (n_occurring := len(labels.unique())) < 2:
        raise ValueError("labels: expected at least two classes that occur, got one. Take another metric.")
    return (n_occurring * mean_class_accuracy(predicted, labels, n_classes) - 100) / (n_occurring - 1)


def matthews_correlation(predicted: Tensor, labels: Tensor) -> float:
    """Return the Matthews correlation times 100, -100 to 100 (scikit-learn)."""
    from sklearn.metrics import matthews_corrcoef

    return 100 * float(matthews_corrcoef(labels.numpy(), predicted.numpy()))


def cohen_kappa(predicted: Tensor, labels: Tensor) -> float:
    """Return Cohen's kappa times 100, the agreement beyond chance (scikit-learn)."""
    from sklearn.metrics import cohen_kappa_score

    return 100 * float(cohen_kappa_score(labels.numpy(), predicted.numpy()))


def classwise_auroc(probabilities: Tensor, labels: Tensor, pairs: bool = False) -> float:
    """Return the mean AUROC of the classes in percent (scikit-learn): one against the rest, or one against one.

    Raises:
        ValueError: where a class has no item, of which there is no AUROC.
    """
    from sklearn.metrics import roc_auc_score

    n_classes = probabilities.shape[1]
    require_labels(labels, n_classes)
    if absent := (torch.bincount(labels, minlength=n_classes) == 0).nonzero().flatten().tolist():
        raise ValueError(
            f"labels: expected items of every class, got none of {absent}. Leave these classes out, or take another "
            "metric."
        )
    p = (probabilities.double() / probabilities.double().sum(1, keepdim=True)).numpy()
    if n_classes == 2:
        return 100 * float(roc_auc_score(labels.numpy(), p[:, 1]))
    return 100 * float(roc_auc_score(labels.numpy(), p, multi_class="ovo" if pairs else "ovr", labels=range(n_classes)))


def require_labels(labels: Tensor, n_classes: int) -> None:
    """Raise ValueError for no labels, or labels outside 0 to C - 1."""
    if not len(labels):
        raise ValueError("labels: expected the labels of at least one item, got none. Take a split with items.")
    if bool(((labels < 0) | (labels >= n_classes)).any()):
        outside = labels[(labels < 0) | (labels >= n_classes)]
        raise ValueError(
            f"labels: expected numbers from 0 to {n_classes - 1}, got {int(outside[0])} ({len(outside)} of "
            f"{len(labels)} lie outside). Correct them, or name all classes."
        )
