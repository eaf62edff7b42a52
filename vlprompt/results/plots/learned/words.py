"""The nearest words of learned tokens, as a picture."""

from dataclasses import dataclass
from typing import Any

from vlprompt.results.plots.learned.panels import prepare_axes

WORDS_WARNING = "Nearest words seldom mean anything: learned tokens lie far from all words."
MAX_DRAWN_TOKENS = 32


@dataclass(frozen=True)
class NearestWords:
    """The nearest words of learned tokens, by Euclidean distance.

    Args:
        tokens: of each learned token what it is called.
        words: of each its nearest words, the nearest first.
        distances: of these words.
        note: what was compared.
    """

    tokens: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    distances: tuple[tuple[float, ...], ...]
    note: str


def plot_words(words: NearestWords, axes: Any = None) -> Any:
    """Plot a line for each learned token with its nearest words and their distances; return the axes.

    Args:
        words: the first 32 tokens are drawn.
        axes: to draw into; default: those of a new figure.
    """
    from matplotlib import rcParams

    tokens = words.tokens[:MAX_DRAWN_TOKENS]
    axes = prepare_axes(axes, (7.5, 1.1 + 0.24 * len(tokens)))
    axes.axis("off")
    cells = [
        [token, *(f"{_show(word)}  {distance:.3f}" for word, distance in zip(row, distances, strict=True))]
        for token, row, distances in zip(tokens, words.words, words.distances, strict=False)
    ]
    header = ["token", *(f"{rank}." for rank in range(1, len(cells[0])))]
    table = axes.table(cells, colLabels=header, loc="center", cellLoc="left", bbox=(0, 0, 1, 1))
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    for (line, _), cell in table.get_celld().items():
        cell.set(linewidth=0.3 if line else 0.8, facecolor="none", edgecolor=rcParams["axes.edgecolor"])
        cell.set_text_props(weight="normal" if line else "bold")
    rest = len(words.tokens) - len(tokens)
    more = f" The first {len(tokens)} of {len(words.tokens)} tokens." if rest else ""
    axes.set_title(f"Nearest words and their distances. {WORDS_WARNING}{more}", fontsize=7)
    return axes


def _show(word: str) -> str:
    """Return a token of a byte-pair vocabulary as it is read: a hyphen stands where the word goes on."""
    text = word.removesuffix("</w>") if word.endswith("</w>") else f"{word}-"
    return text if len(text) <= 13 else f"{text[:12]}…"
