"""What DeCoOp's detectors and classifiers learn by, and the threshold between known and unknown."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import LabelLoss
from vlprompt.core.class_names import Names, class_ids
from vlprompt.metrics import entropy

N_BINS = 256  # of Otsu's histogram
AUTO_PROBABILITY = 0.6  # of one class, from whose entropy the automatic margin is


class FixedTexts(NamedTuple):
    """Texts of all names (U), the trained ones first; the places of those asked for; their zero-shot rows (C, E)."""

    texts: list[str]
    asked: list[int]
    zero_shot: Tensor


def join_names(known: Names, names: Names) -> Names:
    """Return the known names, and behind them those that are new, by id."""
    return (*known, *(name for name, i in zip(names, class_ids(names), strict=True) if i not in class_ids(known)))


def compute_detector_terms(
    label_loss: LabelLoss, logits: Tensor, columns: Tensor, is_inside: Tensor, margin: float | None
) -> dict[str, Tensor]:
    """Return the loss of a detector on images of its classes, and the missing margin to its entropy on the others.

    Args:
        label_loss: as that of a Batch.
        logits: (B, n) of the detector's names.
        columns: (B,) of the images' classes among them; those of images outside are not read.
        is_inside: (B,), whether an image's class is one of the detector's.
        margin: None for the automatic one.
    """
    n, spread = logits.shape[1], entropy(logits.softmax(-1))
    terms = {"ce": logits.sum() * 0, "margin": logits.sum() * 0}
    if margin is None:
        p = AUTO_PROBABILITY
        margin = math.log(n) + p * math.log(p) + (1 - p) * math.log((1 - p) / max(n - 1, 1))
    if bool(is_inside.any()):
        terms["ce"] = label_loss(logits[is_inside], columns[is_inside])
        if not bool(is_inside.all()):
            terms["margin"] = (margin + spread[is_inside].mean() - spread[~is_inside].mean()).clamp(min=0)
    return terms


def compute_classifier_terms(
    label_loss: LabelLoss, logits: Tensor, labels: Tensor, is_known: Tensor, zero_shot: Tensor
) -> dict[str, Tensor]:
    """Return the loss of a classifier on images that its detector knows, and its distance to zero-shot on the others.

    Args:
        label_loss: as that of a Batch.
        logits: (B, C).
        labels: (B,).
        is_known: (B,), whether the detector takes an image for known.
        zero_shot: logits (B, C) of the frozen CLIP.
    """
    terms = {"ce": logits.sum() * 0, "kl": logits.sum() * 0}
    if bool(is_known.any()):
        terms["ce"] = label_loss(logits[is_known], labels[is_known])
    if not bool(is_known.all()):
        target, log_p = zero_shot[~is_known].log_softmax(-1), logits[~is_known].log_softmax(-1)
        terms["kl"] = F.kl_div(log_p, target, reduction="batchmean", log_target=True)
    return terms


def average_terms(terms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each term over detectors or classifiers."""
    return {name: torch.stack([own[name] for own in terms]).mean() for name in terms[0]}


def list_own_names(n_detectors: int, n_trained: int, n_names: int) -> Tensor:
    """Return which of all names (K, U), the trained ones first, each detector knows.

    Detector i knows all trained ones but those whose number modulo K is i; where these are fewer than of others, the
    name i too.
    """
    own = [[u < n_trained and u % n_detectors != i for u in range(n_names)] for i in range(n_detectors)]
    n_own = math.ceil(n_trained * (n_detectors - 1) / n_detectors)
    for i, row in enumerate(own):
        if sum(row) < n_own:
            row[i] = True  # its name alone: its images stay outside
    return torch.tensor(own)


def find_otsu_threshold(values: Tensor) -> float:
    """Return the center of the bin up to which the variance between two groups of values is largest (Otsu, 1979).

    Of equal values it is their value.
    """
    values = values.double().cpu()
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low
    counts = torch.histc(values, N_BINS, low, high)
    centers = low + (torch.arange(N_BINS, dtype=torch.float64) + 0.5) * (high - low) / N_BINS
    n_below, n_above = counts.cumsum(0), counts.flip(0).cumsum(0).flip(0)
    sums = counts * centers
    mean_below, mean_above = sums.cumsum(0) / n_below, sums.flip(0).cumsum(0).flip(0) / n_above
    variance = n_below[:-1] * n_above[1:] * (mean_below[:-1] - mean_above[1:]).square()
    return float(centers[int(variance.argmax())])
