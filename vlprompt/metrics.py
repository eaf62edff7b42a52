"""Numbers that say how good an answer is; all in percent."""

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
    """Mean over the classes that occur of the harmonic mean of precision and recall, in percent."""
    count = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels[predicted == labels], minlength=classes).double()
    f1 = 2 * right / (count + torch.bincount(predicted, minlength=classes))
    return 100 * f1[count > 0].mean().item()


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error of (N, C) over equal-width bins of the top probability, in percent.

    Guo et al., ICML 2017, arXiv:1706.04599.
    """
    sure, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    place = (sure * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.double).index_add_(0, place, right - sure)
    return 100 * gap.abs().sum().item() / len(labels)


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 when either is 0."""
    return 2 * a * b / (a + b) if a and b else 0.0
