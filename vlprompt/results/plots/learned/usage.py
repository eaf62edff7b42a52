"""Which prompts of a pool the images of each lesson and of each class take."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlprompt.results.plots.learned.panels import prepare_axes, set_name_ticks, split_axes
from vlprompt.results.plots.shots import build_colormap


@dataclass(frozen=True)
class PromptUsage:
    """Shares of the prompts of a pool; rows add up to 1.

    Args:
        by_lesson: (T, M); (0, M) where there are no lessons.
        lessons: what each of these rows is called.
        by_class: (C, M).
        names: the classes (C).
        note: what was left out.
    """

    by_lesson: np.ndarray
    lessons: tuple[str, ...]
    by_class: np.ndarray
    names: tuple[str, ...]
    note: str = ""


def plot_usage(usage: PromptUsage, axes: Any = None) -> Any:
    """Plot two heat maps in one scale, of lessons and of classes; return the axes."""
    parts = {"by lesson": (usage.by_lesson, usage.lessons), "by class": (usage.by_class, usage.names)}
    parts = {title: part for title, part in parts.items() if len(part[0])}
    axes = prepare_axes(axes, (4.6 * len(parts), 4.0))
    highest = 100 * max(float(values.max()) for values, _ in parts.values())
    image = None
    for panel, (title, (values, labels)) in zip(
        split_axes(axes, 1, len(parts), gap=0.22)[0], parts.items(), strict=True
    ):
        image = panel.imshow(100 * values, cmap=build_colormap(0.3, 0.6), vmin=0, vmax=highest, aspect="auto")
        set_name_ticks(panel, labels, "y")
        step = -(-values.shape[1] // 12)
        panel.set_xticks(range(0, values.shape[1], step), range(1, values.shape[1] + 1, step), fontsize=7)
        panel.set_xlabel("prompt", fontsize=8)
        panel.set_title(title, fontsize=9)
    axes.figure.colorbar(image, ax=axes, fraction=0.03).set_label("share of the choices, %", fontsize=8)
    axes.set_title(f"Use of the pool by test images. {usage.note}".strip(), fontsize=9, pad=18)
    return axes
