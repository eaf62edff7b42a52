"""What a pseudo-labeller believes of the images of a target domain."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlprompt.results.plots.learned.panels import prepare_axes, set_name_ticks, split_axes
from vlprompt.results.plots.shots import COLOURS

BINS = np.linspace(0, 1, 11)
MAX_CLASSES = 40


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels of N images.

    Args:
        confidence: (N,), the highest probability.
        predicted: (N,), its class.
        is_confident: (N,), whether the method trains on it.
        truth: (N,), the labels, None where they are not known.
        names: the classes (C).
        note: by whom.
    """

    confidence: np.ndarray
    predicted: np.ndarray
    is_confident: np.ndarray
    truth: np.ndarray | None
    names: tuple[str, ...]
    note: str = ""


def plot_pseudo_labels_by_confidence(labels: PseudoLabels, axes: Any) -> Any:
    """Plot how many images have each confidence, and how many of these are trained on; return the axes."""
    counts, _ = np.histogram(labels.confidence, BINS)
    centres = (BINS[:-1] + BINS[1:]) / 2
    axes.bar(centres, counts, 0.09, color="#c9d3ee", label="pseudo-labels")
    trained, _ = np.histogram(labels.confidence[labels.is_confident], BINS)
    axes.bar(centres, trained, 0.09, color=COLOURS[6], label="trained on")
    axes.set_xlabel("confidence", fontsize=8)
    axes.set_ylabel("images", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_ylim(0, 1.25 * max(counts.max(), 1))
    axes.legend(fontsize=7, loc="upper left")
    return axes


def plot_pseudo_label_accuracy(labels: PseudoLabels, axes: Any) -> Any:
    """Plot how many of the images of each confidence are right, where labels are known; return the axes."""
    axes.plot((0, 1), (0, 100), color="#bbbbbb", linestyle="--", linewidth=1)
    if labels.truth is None:
        axes.text(0.5, 50, "labels are not known", ha="center", fontsize=8)
    else:
        counts, _ = np.histogram(labels.confidence, BINS)
        right, _ = np.histogram(labels.confidence[labels.predicted == labels.truth], BINS)
        filled = counts > 0
        centres = ((BINS[:-1] + BINS[1:]) / 2)[filled]
        axes.plot(centres, 100 * right[filled] / counts[filled], color=COLOURS[4], marker="o", markersize=4)
    axes.set_ylim(0, 105)
    axes.set_xlabel("confidence", fontsize=8)
    axes.set_ylabel("accuracy, %", fontsize=8)
    axes.tick_params(labelsize=8)
    return axes


def plot_pseudo_labels_by_class(labels: PseudoLabels, axes: Any) -> Any:
    """Plot how many images are called each class, and how many are of it; return the axes."""
    n = len(labels.names)
    shown = list(range(n)) if n <= MAX_CLASSES else [i * n // MAX_CLASSES for i in range(MAX_CLASSES)]
    predicted, places = np.bincount(labels.predicted, minlength=n)[shown], np.arange(len(shown))
    axes.bar(places - 0.2, predicted, 0.4, color=COLOURS[0], label="pseudo-labels")
    if labels.truth is not None:
        right = np.bincount(labels.predicted[labels.predicted == labels.truth], minlength=n)[shown]
        axes.bar(places - 0.2, right, 0.4, color=COLOURS[4], label="right")
        axes.bar(places + 0.2, np.bincount(labels.truth, minlength=n)[shown], 0.4, color="#bbbbbb", label="images")
    set_name_ticks(axes, [labels.names[i] for i in shown], "x", rotation=90)
    axes.set_ylabel("images", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.legend(fontsize=7)
    if len(shown) < n:
        axes.set_title(f"{len(shown)} of {n:,} classes, evenly spaced", fontsize=8)
    return axes


def plot_pseudo_beliefs(labels: PseudoLabels, axes: Any = None) -> Any:
    """Plot pseudo-labels by confidence, their accuracy, and pseudo-labels by class; return the axes."""
    axes = prepare_axes(axes, (12.0, 4.0))
    by_confidence, accuracy, by_class = split_axes(axes, 1, 3, gap=0.09)[0]
    plot_pseudo_labels_by_confidence(labels, by_confidence)
    plot_pseudo_label_accuracy(labels, accuracy)
    plot_pseudo_labels_by_class(labels, by_class)
    axes.set_title(f"Pseudo-labels of {len(labels.confidence):,} images, {labels.note}", fontsize=9, pad=16)
    return axes
