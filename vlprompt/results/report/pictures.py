"""Pictures of figures: files for papers, and an SVG inside the page that takes the colours of its theme."""

import re
from dataclasses import dataclass
from typing import Any

from vlprompt.results.plots.figure import STYLE, Figure, render_canvas

TEXT_COLOUR = "#010203"  # of no line: on the page it becomes the colour of the text
MAX_INLINE_BYTES = 300_000
THEME: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), TEXT_COLOUR),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.facecolor": "none",
    "legend.edgecolor": "none",
}
IDS = re.compile(r'(\bid="|xlink:href="#|url\(#)')


@dataclass(frozen=True)
class Pictures:
    """A figure in several formats.

    Args:
        svg: without a background, texts and axes in `TEXT_COLOUR`.
        files: PNG and PDF on white, by suffix; {} where only the page is wanted.
    """

    svg: str
    files: dict[str, bytes]


def draw_pictures(figure: Figure, with_files: bool) -> Pictures:
    """Draw a figure once and write it in every format."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context({**STYLE, **THEME}):
        canvas = Canvas(figsize=figure.size, layout="constrained")
        figure.draw(canvas.subplots())
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")  # else each format lays out anew
        svg = render_canvas(canvas, "svg").decode()
        canvas.set_facecolor("white")
        files = {suffix: render_canvas(canvas, suffix) for suffix in ("png", "pdf")} if with_files else {}
    return Pictures(svg, files)


def inline_svg(svg: str, name: str) -> str:
    """Return an SVG as part of a page: its ids are its own, its texts have the colour of the page's text."""
    body = svg[svg.index("<svg") :]
    body = IDS.sub(lambda match: f"{match[1]}{name}-", body).replace(TEXT_COLOUR, "currentColor")
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r">\n\s*<", "><", body)
    return body.replace("<svg ", '<svg fill="currentColor" focusable="false" aria-hidden="true" ', 1).strip()
