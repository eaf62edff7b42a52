"""Pictures of figures: files for papers, and an SVG inside the page that takes the colours of its theme."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlprompt.results.plots.figure import PICTURE_METADATA, STYLE, Figure

TEXT_COLOUR = "#010203"  # of no line: on the page it becomes the colour of the text
MAX_INLINE_BYTES, FILE_DPI = 300_000, 130
PADDING = 0.05  # inches around what is drawn
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
    """Draw a figure and write it in every format."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    # the writers of the formats themselves, as `savefig` draws twice for each
    writers = {"png": FigureCanvasAgg, "pdf": FigureCanvasPdf} if with_files else {}
    with matplotlib.rc_context({**STYLE, **THEME}):
        canvas = Canvas(figsize=figure.size)
        figure.draw(canvas.subplots())
        _fit_page(canvas)
        svg = _write(FigureCanvasSVG(canvas).print_svg, "svg").decode()
        canvas.set_facecolor("white")
        files = {}
        for name, writer in writers.items():
            canvas.set_dpi(FILE_DPI)  # as writers of vectors set their own
            files[name] = _write(getattr(writer(canvas), f"print_{name}"), name)
    return Pictures(svg, files)


def _fit_page(canvas: Any) -> None:
    """Move the page's edges to what is drawn; many times as fast as a layout that moves what is drawn."""
    width, height = canvas.get_size_inches()
    box = canvas.get_tightbbox().padded(PADDING)
    positions = [(axes, axes.get_position(original=True)) for axes in canvas.axes]
    canvas.set_size_inches(box.width, box.height)
    for axes, place in positions:
        left, bottom = (place.x0 * width - box.x0) / box.width, (place.y0 * height - box.y0) / box.height
        axes.set_position((left, bottom, place.width * width / box.width, place.height * height / box.height))


def _write(write: Callable[..., None], picture_format: str) -> bytes:
    stream = io.BytesIO()
    write(stream, metadata=PICTURE_METADATA[picture_format])
    return stream.getvalue()


def inline_svg(svg: str, name: str) -> str:
    """Return an SVG as part of a page: its ids are its own, its texts have the colour of the page's text."""
    body = svg[svg.index("<svg") :]
    body = IDS.sub(lambda match: f"{match[1]}{name}-", body).replace(TEXT_COLOUR, "currentColor")
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r">\n\s*<", "><", body)
    return body.replace("<svg ", '<svg fill="currentColor" focusable="false" aria-hidden="true" ', 1).strip()
