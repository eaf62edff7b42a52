"""A figure as a value: drawn by Matplotlib into a file or given axes, shown by Plotly on a page, read as a table."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.results.atomic_files import write_atomically
from vlprompt.results.tables.formats import Table, render_csv, render_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_FORMATS = ("png", "pdf", "svg")
FILE_DPI, PADDING = 130, 0.05  # inches around what is drawn
MARGINS = {"left": 0.08, "right": 0.98, "bottom": 0.1, "top": 0.92}  # as small as a layout leaves them
TABLE_SUFFIXES = ("csv", "md", "tex")
PICTURE_METADATA = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}, "svg": {"Date": None}}
# names may have $; ids of an SVG come from its content; its texts stay texts
STYLE: Any = {"text.parse_math": False, "svg.hashsalt": "vlprompt", "svg.fonttype": "none"}


@dataclass(frozen=True)
class Figure:
    """One figure of results.

    Args:
        name: of its files, without suffix.
        title: one line.
        description: what it shows, for those who do not see it.
        draw: draws it into axes.
        interactive: the same as a Plotly figure, {"data": [...], "layout": {...}}, without colours of a theme; None
            for a figure that is a picture only.
        table: its numbers.
        size: width and height in inches.
    """

    name: str
    title: str
    description: str
    draw: "Callable[[Axes], None]"
    interactive: dict[str, Any] | None = None
    table: Table | None = None
    size: tuple[float, float] = (6.4, 4.0)


def make_figure_name(*parts: str) -> str:
    """Join parts to a name for files, such as shots-digits."""
    return "-".join(filter(None, (re.sub(r"[^A-Za-z0-9_.]+", "_", part).strip("_.") for part in parts)))


def draw_figure(figure: Figure, axes: "Axes | None" = None) -> "Axes":
    """Draw a figure into axes; without any into new ones of pyplot."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        if axes is None:
            from matplotlib import pyplot as plt

            _, axes = plt.subplots(figsize=figure.size, layout="constrained")
        figure.draw(axes)
    return axes


def render_picture(figure: Figure, picture_format: str) -> bytes:
    """Return a figure as the bytes of a PNG, PDF or SVG, the same for the same numbers."""
    return render_pictures(figure, [picture_format])[picture_format]


def render_pictures(figure: Figure, formats: Sequence[str], theme: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """Draw a figure once and return it in several formats.

    Args:
        figure: what is drawn.
        formats: "png", "pdf" and "svg"; the first two have a white background.
        theme: settings of Matplotlib, for example another background of the SVG.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    pictures, style = dict[str, bytes](), {**STYLE, **(theme or {})}
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=figure.size)
        canvas.subplots_adjust(**MARGINS)
        figure.draw(canvas.subplots())
        _fit_page(canvas)
        for name in sorted(formats, reverse=True):  # the SVG first, which has the background of the theme
            if name != "svg":
                canvas.set_facecolor("white")
            pictures[name] = render_canvas(canvas, name)
    return pictures


def _fit_page(canvas: Any) -> None:
    """Move the page's edges to what is drawn; many times as fast as a layout that moves what is drawn."""
    width, height = canvas.get_size_inches()
    box = canvas.get_tightbbox().padded(PADDING)
    positions = [(axes, axes.get_position(original=True)) for axes in canvas.axes]
    canvas.set_size_inches(box.width, box.height)
    for axes, place in positions:
        left, bottom = (place.x0 * width - box.x0) / box.width, (place.y0 * height - box.y0) / box.height
        axes.set_position((left, bottom, place.width * width / box.width, place.height * height / box.height))


def require_picture_formats(formats: Sequence[str]) -> None:
    """Raise ValueError for a format that there is not."""
    for name in formats:
        if name not in PICTURE_FORMATS:
            raise ValueError(f"--format: expected {', '.join(PICTURE_FORMATS)}, got {name!r}. Write one of them.")


def render_canvas(canvas: Any, picture_format: str) -> bytes:
    """Return a figure of Matplotlib as bytes without dates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    # the writers of the formats themselves, as `savefig` draws twice for each
    writers = {"png": FigureCanvasAgg, "pdf": FigureCanvasPdf, "svg": FigureCanvasSVG}
    if picture_format not in writers:
        raise ValueError(
            f"format: expected one of {', '.join(PICTURE_FORMATS)}, got {picture_format!r}. Name another file."
        )
    stream = io.BytesIO()
    canvas.set_dpi(FILE_DPI)  # as writers of vectors set their own
    write = getattr(writers[picture_format](canvas), f"print_{picture_format}")
    write(stream, metadata=PICTURE_METADATA[picture_format])
    return stream.getvalue()


def render_figure_table(figure: Figure, suffix: str) -> str:
    """Return the table of a figure as "csv", "md" or "tex"."""
    table = figure.table or Table(figure.title, [], [])
    if suffix == "csv":
        columns = [name or "row" for name in table.header]
        return render_csv([dict(zip(columns, cells, strict=True)) for cells in table.rows], columns)
    return render_tables([table], "see the description", {"md": "markdown", "tex": "latex"}[suffix])


def save_figure_files(
    figure: Figure, folder: Path, formats: Sequence[str] = (*PICTURE_FORMATS, *TABLE_SUFFIXES)
) -> list[Path]:
    """Write a figure in every format: PNG, PDF, SVG, and its table as CSV, Markdown and LaTeX."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = [suffix for suffix in formats if suffix in TABLE_SUFFIXES and figure.table is not None]
    files = render_pictures(figure, [name for name in formats if name not in TABLE_SUFFIXES])
    files |= {suffix: render_figure_table(figure, suffix).encode() for suffix in tables}
    paths = [folder / f"{figure.name}.{suffix}" for suffix in formats if suffix in files]
    for path in paths:
        write_atomically(path, files[path.suffix[1:]])
    return paths
