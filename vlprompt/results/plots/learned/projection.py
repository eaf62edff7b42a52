"""Image and text features in two dimensions, in the colours of their classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlprompt.results.plots.learned.panels import list_class_colours, prepare_axes, shorten


@dataclass(frozen=True)
class Projection:
    """Features in the plane.

    Args:
        method: "t-SNE" or "UMAP".
        points: (N, 2), of images.
        labels: (N,), of images.
        text_points: (C, 2), of class texts; (0, 2) without any.
        names: the classes (C), twenty at most.
        note: settings, and what was sampled.
    """

    method: str
    points: np.ndarray
    labels: np.ndarray
    text_points: np.ndarray
    names: tuple[str, ...]
    note: str


def plot_projection(projection: Projection, axes: Any = None) -> Any:
    """Plot images as dots and class texts as stars; return the axes."""
    axes = prepare_axes(axes, (7.2, 5.2))
    for label, colour in enumerate(list_class_colours(len(projection.names))):
        points, name = projection.points[projection.labels == label], shorten([projection.names[label]])[0]
        axes.scatter(points[:, 0], points[:, 1], s=9, color=colour, linewidths=0, alpha=0.75, label=name)
        text = projection.text_points[label : label + 1]
        axes.scatter(text[:, 0], text[:, 1], s=130, marker="*", color=colour, edgecolors="black", linewidths=0.7)
    axes.set_xticks([])
    axes.set_yticks([])
    stars = "; a star is a class text" if len(projection.text_points) else ""
    axes.set_title(f"{projection.method} of image features{stars}\n{projection.note}", fontsize=8)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=1.6)
    return axes
