"""The pictures of a learned prompt as figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from vlprompt.core.batch import Item, Split
from vlprompt.core.stage import Stage
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.experiments.look.attention import compute_attention
from vlprompt.experiments.look.choices import compute_prompt_usage, compute_pseudo_labels
from vlprompt.experiments.look.features import Features, collect_features, compute_text_similarity, project_features
from vlprompt.experiments.look.subject import PictureUnavailableError, open_stage, sample_evenly, select_test
from vlprompt.experiments.look.words import find_nearest_words
from vlprompt.results.plots.figure import Figure
from vlprompt.results.plots.learned.attention import get_attention_size, plot_attention
from vlprompt.results.plots.learned.projection import plot_projection
from vlprompt.results.plots.learned.pseudo_labels import plot_pseudo_beliefs
from vlprompt.results.plots.learned.similarity import plot_similarity
from vlprompt.results.plots.learned.usage import plot_usage
from vlprompt.results.plots.learned.words import plot_words
from vlprompt.results.tables.formats import Table
from vlprompt.runtime.errors import suggest_nearest

DEFAULT_IMAGES = 4


@dataclass
class Look:
    """What the pictures of one prompt are drawn of, each computed when it is first needed.

    Args:
        prompt: the learned prompt.
        stage: the last stage of its run; default: opened.
        items: images whose attention is drawn; default: four of the test.
    """

    prompt: LearnedPrompt
    stage: Stage | None = None
    items: Sequence[Item] = ()

    @cached_property
    def opened_stage(self) -> Stage:
        return open_stage(self.prompt) if self.stage is None else self.stage

    @cached_property
    def test(self) -> Split:
        return select_test(self.opened_stage)

    @cached_property
    def features(self) -> Features:
        return collect_features(self.prompt, self.test)


def _draw_words(look: Look) -> Figure:
    words = find_nearest_words(look.prompt, split=look.test)
    header = ["token", *(f"{what} {rank}" for rank in range(1, 6) for what in ("word", "distance"))]
    rows = [
        [token, *(cell for pair in zip(row, map(str, distances), strict=True) for cell in pair)]
        for token, row, distances in zip(words.tokens, words.words, words.distances, strict=True)
    ]
    table, size = Table("Nearest words", header, rows), (8.6, 1.1 + 0.24 * min(len(rows), 32))
    return Figure(
        "words", "Nearest words of learned tokens", words.note, partial(_draw, plot_words, words), None, table, size
    )


def _draw_similarity(look: Look) -> Figure:
    similarity = compute_text_similarity(look.prompt, look.test)
    n = len(similarity.names)
    rows = [
        [similarity.names[i], similarity.names[j], str(similarity.before[i, j]), str(similarity.after[i, j])]
        for i in range(n)
        for j in range(i + 1, n)
    ]
    table = Table("Cosines of class texts", ["class", "other class", "before", "after"], rows)
    description = f"Cosines of the texts of {n} classes before and after learning. {similarity.note}".strip()
    draw = partial(_draw, plot_similarity, similarity)
    return Figure("similarity", "Similarity of class texts", description, draw, None, table, (9.6, 4.8))


def _draw_projection(method: Any, look: Look) -> Figure:
    projection = project_features(look.features, method)
    title = f"{projection.method} of image and text features"
    draw = partial(_draw, plot_projection, projection)
    return Figure(method, title, projection.note, draw, size=(7.6, 5.2))


def _draw_attention(look: Look) -> Figure:
    items, captions = list(look.items), list[str]()
    if not items:
        chosen = sample_evenly(len(look.test), DEFAULT_IMAGES)
        items = [look.test.items[i] for i in chosen]
        captions = [", ".join(map(str, look.test.list_labels(i))) for i in chosen]
    names = None if look.items else look.test.names
    attention = compute_attention(look.prompt, items, names, captions)
    titles = ", ".join(title.replace("\n", " ") for title in attention.maps)
    draw = partial(_draw, plot_attention, attention)
    size = get_attention_size(attention)
    return Figure("attention", "Attention over images", f"Maps over the patches: {titles}.", draw, size=size)


def _draw_usage(look: Look) -> Figure:
    usage = compute_prompt_usage(look.prompt, look.test)
    description = f"Share of each prompt in the answers to the test images. {usage.note}".strip()
    header = ["row", *map(str, range(1, usage.by_class.shape[1] + 1))]
    lessons = [[f"lesson {n}", *map(str, row)] for n, row in zip(usage.lessons, usage.by_lesson, strict=True)]
    classes = [[n, *map(str, row)] for n, row in zip(usage.names, usage.by_class, strict=True)]
    table = Table("Use of prompts", header, lessons + classes)
    size = (9.2 if len(lessons) else 5.0, 4.4)
    return Figure(
        "usage", "Use of the prompts of a pool", description, partial(_draw, plot_usage, usage), None, table, size
    )


def _draw_pseudo(look: Look) -> Figure:
    labels = compute_pseudo_labels(look.prompt, look.opened_stage)
    description = f"Confidence and class of {len(labels.confidence):,} pseudo-labels, {labels.note}."
    draw = partial(_draw, plot_pseudo_beliefs, labels)
    return Figure("pseudo", "What the pseudo-labeller believes", description, draw, size=(12.0, 4.2))


def _draw(plot: Callable[[Any, Any], Any], values: Any, axes: Any) -> None:
    plot(values, axes)


PICTURES: Mapping[str, Callable[[Look], Figure]] = {
    "words": _draw_words,
    "similarity": _draw_similarity,
    "tsne": partial(_draw_projection, "tsne"),
    "umap": partial(_draw_projection, "umap"),
    "attention": _draw_attention,
    "usage": _draw_usage,
    "pseudo": _draw_pseudo,
}


def require_pictures(what: Sequence[str]) -> None:
    """Raise ValueError for a picture that there is not."""
    for name in what:
        if name not in PICTURES:
            raise ValueError(
                f"--what: expected {', '.join(PICTURES)}, got {name!r}; {suggest_nearest(name, list(PICTURES))}"
            )


def iter_look_figures(
    prompt: LearnedPrompt, what: Sequence[str] | None = None, stage: Stage | None = None, items: Sequence[Item] = ()
) -> Iterator[Figure | str]:
    """Yield each picture, or the line that says why a method does not have it.

    Args:
        prompt: the learned prompt.
        what: the pictures; None for all that there are, umap only where its package is installed.
        stage: of its run; default: opened.
        items: images whose attention is drawn; default: four of the test.

    Raises:
        ValueError: for a picture that there is not.
        PictureUnavailableError: for a picture asked for by name that the method does not have.
    """
    require_pictures(what or ())
    look = Look(prompt, stage, items)
    for name in what or PICTURES:
        try:
            yield PICTURES[name](look)
        except PictureUnavailableError as error:
            if what is not None:
                raise
            yield str(error)
        except OSError as error:
            if what is not None or name != "umap":
                raise
            yield str(error)


def build_look_figures(
    prompt: LearnedPrompt, what: Sequence[str] | None = None, stage: Stage | None = None, items: Sequence[Item] = ()
) -> list[Figure]:
    """Build the pictures that a method has; arguments and errors as in `iter_look_figures`."""
    return [figure for figure in iter_look_figures(prompt, what, stage, items) if isinstance(figure, Figure)]
