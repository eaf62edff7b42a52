"""Calibration of probabilities: ECE and its kin, negative log-likelihood, Brier score."""

import torch
from torch import Tensor

CALIBRATION_METRICS = {  # before and after temperature scaling
    "ece10": "expected calibration error in 10 bins (lower, upper] of the top probability",
    "ece15": "the same in 15 bins",
    "ada_ece15": "the same in 15 bins of equally many items (AdaECE); the least sure item is in none",
    "nll": "mean negative log-likelihood of the true class in nats; no percentage",
    "brier": "mean over items of the squared differences between probabilities and truth, summed over classes, 0 to 2; "
    "no percentage",
}


def calibration_error(probabilities: Tensor, labels: Tensor, n_bins: int = 15) -> float:
    """Return the expected calibration error of (N, C) over equal-width bins of the top probability, in percent.

    Bins are (lower, upper]. Guo et al., ICML 2017, arXiv:1706.04599.
    """
    confidence, predicted = probabilities.double().max(1)
    return confidence_error(confidence, predicted == labels, n_bins)


def confidence_error(confidence: Tensor, correct: Tensor, n_bins: int = 15) -> float:
    """Return `calibration_error` of the probability (N,) of each answer and whether it is right (N,)."""
    gap = torch.zeros(n_bins, dtype=torch.double)
    gap.index_add_(0, _bin_confidence(confidence, n_bins), correct.double() - confidence.double())
    return 100 * gap.abs().sum().item() / len(confidence)


def _bin_confidence(confidence: Tensor, n_bins: int) -> Tensor:
    """The number of the bin (lower, upper] of each probability, equally wide; 0 is in the first."""
    return (confidence.double() * n_bins).ceil().long().clamp(1, n_bins) - 1


def reliability(confidence: Tensor, correct: Tensor, n_bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Return items, mean probability and share right of each equally wide bin (lower, upper], in percent.

    What a reliability diagram draws; Guo et al., ICML 2017, arXiv:1706.04599.

    Args:
        confidence: probability (N,) of each answer.
        correct: whether it is right (N,).
        n_bins: number of bins.
    """
    bins, zeros = _bin_confidence(confidence, n_bins), torch.zeros(n_bins, dtype=torch.double)
    counts = torch.bincount(bins, minlength=n_bins)
    sums = (zeros.index_add(0, bins, values.double()) for values in (confidence, correct))
    mean, right = (total / counts.clamp(min=1) * 100 for total in sums)
    return counts, mean, right


def bin_gaps(confidence: Tensor, correct: Tensor, n_bins: int = 15) -> dict[str, float]:
    """Return what the bins of `reliability` come to besides ECE, in percent.

    "mce": the largest difference of a bin; "rmsce": the root of the mean squared one, weighted by items;
    "average_calibration_error": the mean over the bins that have items, whatever their number.
    """
    counts, mean, right = reliability(confidence, correct, n_bins)
    gap, weight = (mean - right).abs(), counts.double() / counts.sum()
    filled = gap[counts > 0]
    root = (weight * gap.square()).sum().sqrt().item()
    return {"mce": filled.max().item(), "rmsce": root, "average_calibration_error": filled.mean().item()}


def adaptive_calibration_error(probabilities: Tensor, labels: Tensor, n_bins: int = 15) -> float:
    """Return the calibration error of (N, C) over bins of equally many items (AdaECE), in percent.

    Bins are (lower, upper], so that the least sure item is in none, as in the authors' code (Mukhoti et al., NeurIPS
    2020, arXiv:2002.09437).
    """
    confidence, predicted = probabilities.double().max(1)
    return adaptive_confidence_error(confidence, predicted == labels, n_bins)


def adaptive_confidence_error(confidence: Tensor, correct: Tensor, n_bins: int = 15) -> float:
    """Return `adaptive_calibration_error` of the probability (N,) of each answer and whether it is right (N,)."""
    n, confidence, correct = len(confidence), confidence.double(), correct.double()
    order = confidence.sort().values
    # the authors' edges lie between two sorted probabilities; the lower one parts them in the same way
    values = order[torch.linspace(0, n, n_bins + 1, dtype=torch.double).clamp(max=n - 1).long()]
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


def class_calibration_error(
    probabilities: Tensor, labels: Tensor, n_bins: int = 15, equal_mass: bool = True, threshold: float = 0.0
) -> float:
    """Return the mean over classes of the calibration error of all N probabilities of a class, in percent.

    With bins of equal mass it is ACE, with equally wide ones SCE, with a threshold TACE; bins are [lower, upper).
    Nixon et al., "Measuring Calibration in Deep Learning", CVPR workshops 2019, arXiv:1904.01685.

    Args:
        probabilities: (N, C).
        labels: (N,).
        n_bins: number of bins.
        equal_mass: bins of about equally many items, with edges at the sorted probabilities.
        threshold: only probabilities above it count.
    """
    errors = list[float]()
    for c, p in enumerate(probabilities.double().T):
        above, right = p > threshold if threshold else p >= 0, labels == c
        p, right = p[above], right[above].double()
        if not len(p):
            errors.append(0.0)
            continue
        if equal_mass:  # round half to even, as numpy
            edges = p.sort().values[(torch.arange(n_bins, dtype=torch.double) * (len(p) / n_bins)).round().long()]
        else:
            edges = torch.arange(n_bins, dtype=torch.double) / n_bins
        bins = torch.bucketize(p, edges, right=True)
        gap = torch.zeros(n_bins + 1, dtype=torch.double).index_add_(0, bins, right - p)
        errors.append(100 * gap.abs().sum().item() / len(p))
    return sum(errors) / len(errors)


def classwise_calibration_error(probabilities: Tensor, labels: Tensor, n_bins: int = 15) -> float:
    """Return the mean over classes of the ECE of each class's N probabilities, in percent; bins are (lower, upper].

    Kull et al., "Beyond temperature scaling", NeurIPS 2019, arXiv:1910.12656.
    """
    errors = [confidence_error(p, labels == c, n_bins) for c, p in enumerate(probabilities.double().T)]
    return sum(errors) / len(errors)
