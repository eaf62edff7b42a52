"""The similarity of class texts before and after learning, as two heat maps."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlprompt.results.plots.learned.panels import prepare_axes, set_name_ticks, split_axes
from vlprompt.results.plots.shots import build_colormap


@dataclass(frozen=True)
class TextSimilarity:
    """Cosines of the text features of classes.

    Args:
        names: the classes (C).
        before: (C, C), of the zero-shot template.
        after: (C, C), as learned.
        note: what was left out.
    """

    names: tuple[str, ...]
    before: np.ndarray
    after: np.ndarray
    note: str = ""


def plot_similarity(similarity: TextSimilarity, axes: Any = None) -> Any:
    """Plot both matrices in one scale of colours, that of the cosines of different classes; return the axes."""
    axes = prepare_axes(axes, (9.0, 4.4))
    panels = split_axes(axes, 1, 2, gap=0.2)[0]
    matrices = {"zero-shot template": similarity.before, "as learned": similarity.after}
    others = [m[~np.eye(len(m), dtype=bool)] for m in matrices.values() if len(m) > 1]
    low, high = (float(np.min(others)), float(np.max(others))) if others else (-1.0, 1.0)
    image = None
    for panel, (title, matrix) in zip(panels, matrices.items(), strict=True):
        image = panel.imshow(matrix, cmap=build_colormap(0.3, 0.6), vmin=low, vmax=max(high, low + 1e-6))
        set_name_ticks(panel, similarity.names, "x", rotation=90)
        set_name_ticks(panel, similarity.names, "y")
        panel.set_title(title, fontsize=9)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.03)
    bar.set_label("cosine (the diagonal is 1)", fontsize=8)
    axes.set_title(f"Similarity of class texts. {similarity.note}".strip(), fontsize=9, pad=20)
    return axes
