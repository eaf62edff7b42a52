"""The attention of the class token and of prompt tokens over images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlprompt.results.plots.learned.panels import prepare_axes, split_axes


@dataclass(frozen=True)
class ImageAttention:
    """Attention over B images, mean over heads.

    Args:
        images: (B, h, w, 3), from 0 to 1.
        maps: by the words for them, (B, rows, columns) over the patches.
        on_prompts: (B,), the class token's attention to prompt tokens and prefixes in the last layer.
        captions: of each image.
    """

    images: np.ndarray
    maps: Mapping[str, np.ndarray]
    on_prompts: np.ndarray
    captions: tuple[str, ...]


def get_attention_size(attention: ImageAttention) -> tuple[float, float]:
    """Return width and height in inches."""
    return 1.5 * (1 + len(attention.maps)), 0.8 + 1.4 * len(attention.images)


def plot_attention(attention: ImageAttention, axes: Any = None) -> Any:
    """Plot each image, then each map over it from 0 to its own largest value; return the axes."""
    axes = prepare_axes(axes, get_attention_size(attention))
    n_images, (height, width) = len(attention.images), attention.images.shape[1:3]
    for i, line in enumerate(split_axes(axes, n_images, 1 + len(attention.maps), gap=0.04)):
        for panel, title in zip(line, ("image", *attention.maps), strict=True):
            panel.set_xticks([])
            panel.set_yticks([])
            image = attention.images[i]
            if title == "image":
                panel.imshow(image)
                panel.set_ylabel(attention.captions[i], fontsize=7)
            else:
                values = attention.maps[title][i]
                panel.imshow(np.repeat(image.mean(2, keepdims=True), 3, 2), extent=(0, width, height, 0))
                heat = {"cmap": "magma", "vmin": 0, "vmax": float(values.max()) or 1.0, "alpha": 0.65}
                panel.imshow(values, extent=(0, width, height, 0), interpolation="nearest", **heat)
            if i == 0:
                panel.set_title(title, fontsize=7)
    share = 100 * float(attention.on_prompts.mean())
    prompts = f"; {share:.1f} % of the class token's goes to prompts in the last layer" if share else ""
    axes.set_title(f"Attention over patches, each map from 0 to its largest value{prompts}", fontsize=8, pad=28)
    return axes
