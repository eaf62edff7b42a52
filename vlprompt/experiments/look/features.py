"""Features as learned: the similarity of class texts, and image and text features in the plane."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from vlprompt.core.batch import Split
from vlprompt.core.towers import Clip
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.experiments.look.subject import (
    PictureUnavailableError,
    collect_outputs,
    join,
    name_method,
    require_image_prompt,
    require_one_label_items,
    sample_evenly,
    sample_split,
)
from vlprompt.layers.class_texts import encode_class_texts
from vlprompt.results.plots.learned.projection import Projection
from vlprompt.results.plots.learned.similarity import TextSimilarity
from vlprompt.runtime.installation import require_package

MAX_MATRIX_CLASSES = 40
PERPLEXITY, NEIGHBOURS, MIN_POINTS = 30, 15, 5


def compute_text_similarity(prompt: LearnedPrompt, split: Split) -> TextSimilarity:
    """Compute the cosines of class texts, by the template of zero-shot and as learned.

    Args:
        prompt: on a CLIP.
        split: its classes, and one image for methods whose texts depend on the image.

    Raises:
        PictureUnavailableError: for a method without class texts.
    """
    require_image_prompt(prompt)
    clip, classes = prompt.method.backbone, sample_evenly(len(split.names), MAX_MATRIX_CLASSES)
    text = collect_outputs(prompt, split.select([0]))[0].text_features
    if text is None or not isinstance(clip, Clip):
        raise PictureUnavailableError(
            f"similarity: expected a method that answers by class texts, got {name_method(prompt)}. Look at another "
            "run, or leave similarity out."
        )
    notes = []
    if text.ndim == 3:
        text = text[0]
        notes.append("Texts depend on the image: these are of the first test image.")
    names = tuple(split.names[c] for c in classes)
    with torch.no_grad():
        before = clip.unit(encode_class_texts(clip, names, None, normalize=True)).cpu().double()
    after = clip.unit(text[classes].double())
    if len(classes) < len(split.names):
        notes.append(f"{len(classes)} of {len(split.names):,} classes, evenly spaced.")
    if torch.allclose(before @ before.T, after @ after.T, atol=1e-5):
        notes.append("The method does not change them.")
    matrices = ((x @ x.T).numpy() for x in (before, after))
    return TextSimilarity(tuple(map(str, names)), *matrices, note=" ".join(notes))


@dataclass(frozen=True)
class Features:
    """Normalised features of a method.

    Args:
        image: (N, E).
        labels: (N,).
        text: (C, E), of the classes; (0, E) without class texts in the same space.
        names: the classes (C).
        note: what was sampled.
    """

    image: np.ndarray
    labels: np.ndarray
    text: np.ndarray
    names: tuple[str, ...]
    note: str = ""


def collect_features(prompt: LearnedPrompt, split: Split) -> Features:
    """Collect the features of at most 1,000 images of at most 20 classes, and of their texts.

    Raises:
        PictureUnavailableError: for a method without image features, and images that may have several labels.
    """
    require_image_prompt(prompt)
    require_one_label_items(split, "features")
    drawn, note = sample_split(split)
    outputs = collect_outputs(prompt, drawn)
    image, text = join([output.image_features for output in outputs]), outputs[0].text_features
    if image is None:
        raise PictureUnavailableError(
            f"features: expected a method with one feature for each image, got {name_method(prompt)}. Look at another "
            "run."
        )
    if text is None or text.ndim != 2 or text.shape[1] != image.shape[1]:
        text = torch.zeros(0, image.shape[1])
    unit = [Clip.unit(x.double()).numpy() for x in (image, text)]
    return Features(unit[0], np.array(drawn.labels), unit[1], tuple(map(str, drawn.names)), note)


def project_features(features: Features, method: Literal["tsne", "umap"] = "tsne", seed: int = 0) -> Projection:
    """Project image and text features together into the plane by t-SNE or UMAP, by cosine distances.

    Args:
        features: five points at least.
        method: "umap" needs the extra umap.
        seed: of the projection.

    Raises:
        PictureUnavailableError: for fewer points.
    """
    points = np.concatenate([features.image, features.text])
    if (n := len(points)) < MIN_POINTS:
        raise PictureUnavailableError(
            f"{method}: expected at least {MIN_POINTS} images and class texts, got {n}. Take a dataset with more."
        )
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(PERPLEXITY, (n - 1) / 3)  # as few points have no more neighbours
        model = TSNE(2, perplexity=perplexity, metric="cosine", init="random", random_state=seed)
        title, settings = "t-SNE", f"perplexity {perplexity:g}"
    else:
        n_neighbours = min(NEIGHBOURS, n - 1)
        umap = require_package("umap", "umap", "look --what umap")
        start = "random" if n < 3 * NEIGHBOURS else "spectral"  # the spectral start fails on few points
        model = umap.UMAP(n_neighbors=n_neighbours, metric="cosine", init=start, random_state=seed, n_jobs=1)
        title, settings = "UMAP", f"{n_neighbours} neighbours"
    plane = np.asarray(model.fit_transform(points))
    note = "; ".join([f"cosine distances, {settings}, seed {seed}", *([features.note] if features.note else [])])
    images, texts = np.split(plane, [len(features.image)])
    return Projection(title, images, features.labels, texts, features.names, note)
