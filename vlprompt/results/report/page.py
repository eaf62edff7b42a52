"""Write a report as a page: in one file, or in a folder with its figures and tables as files."""

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlprompt.results.plots.figure import (
    PICTURE_FORMATS,
    TABLE_SUFFIXES,
    Figure,
    render_figure_table,
    render_picture,
    render_pictures,
)
from vlprompt.results.report.content import Report, ReportTable, Section
from vlprompt.results.report.pictures import MAX_INLINE_BYTES, TEXT_COLOUR, THEME, inline_svg
from vlprompt.results.tables.formats import Table, render_csv, render_tables
from vlprompt.runtime.installation import require_package

ROOM = Path(__file__).parent
EXTRA, PURPOSE = "report", "report"
MAX_NUMBER_ROWS = 300  # of a figure's table on the page; its file has all


@dataclass
class Files:
    """Files beside a page, by their path in its folder, and which of them belong to a table or figure."""

    data: dict[str, bytes] = field(default_factory=dict)
    by_table: dict[str, list[str]] = field(default_factory=dict)
    by_figure: dict[str, list[str]] = field(default_factory=dict)


def require_page_packages() -> None:
    """OSError that names the extra, where a package of the page is missing."""
    for package in ("jinja2", "plotly"):
        require_package(package, EXTRA, PURPOSE)


def render_single_page(report: Report) -> bytes:
    """Return a report as one HTML file, with its scripts and without further files."""
    return _render(report, Files(), is_single=True)


def render_page_files(report: Report) -> dict[str, bytes]:
    """Return a report as files by their path: index.html, assets/, figures/, tables/ and further ones."""
    files = Files()
    for item in _iter_tables(report):
        _add(files.data, files.by_table, item.name, _render_table_files(item))
    page = _render(report, files, is_single=False)
    assets = {f"assets/{name}": (ROOM / "assets" / name).read_bytes() for name in ("report.css", "report.js")}
    if _has_interactive(report):
        assets["assets/plotly.min.js"] = _read_plotly()
    further = {path: data for path, (data, _) in report.files.items()}
    return {"index.html": page, **assets, **files.data, **further}


def _add(data: dict[str, bytes], index: dict[str, list[str]], name: str, files: Mapping[str, bytes]) -> None:
    data |= files
    index[name] = list(files)


def _iter_tables(report: Report) -> Iterator[ReportTable]:
    for section in report.sections:
        yield from section.tables


def _render_table_files(item: ReportTable) -> dict[str, bytes]:
    header = [name or "row" for name in item.table.header]
    records = item.records or [dict(zip(header, cells, strict=True)) for cells in item.table.rows]
    texts = {"csv": render_csv(records, None if item.records else header)}
    for suffix, output_format in (("md", "markdown"), ("tex", "latex")):
        texts[suffix] = render_tables([item.table], item.units or "as named", output_format)
    return {f"tables/{item.name}.{suffix}": text.encode() for suffix, text in texts.items()}


def _draw(report: Report, files: Files, is_single: bool) -> dict[str, Any]:
    """Return the pictures of all figures as markup, and add their files."""
    markup = require_package("markupsafe", EXTRA, PURPOSE).Markup
    pictures = {}
    for figure in (f for section in report.sections for f in section.figures):
        drawn = render_pictures(figure, ("svg",) if is_single else PICTURE_FORMATS, THEME)
        svg = drawn["svg"].decode()
        if not is_single:
            own = {**drawn, "svg": svg.replace(TEXT_COLOUR, "#000000").encode()}
            if figure.table is not None and figure.table.rows:
                own |= {suffix: render_figure_table(figure, suffix).encode() for suffix in TABLE_SUFFIXES}
            named = {f"figures/{figure.name}.{suffix}": data for suffix, data in own.items()}
            _add(files.data, files.by_figure, figure.name, named)
        is_small = len(svg) <= MAX_INLINE_BYTES
        pictures[figure.name] = markup(inline_svg(svg, figure.name) if is_small else _embed_png(figure))
    return pictures


def _embed_png(figure: Figure) -> str:
    """Return a figure of many marks as a picture of pixels."""
    png = render_picture(figure, "png")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _has_interactive(report: Report) -> bool:
    return any(figure.interactive for section in report.sections for figure in section.figures)


def _render(report: Report, files: Files, is_single: bool) -> bytes:
    jinja2 = require_package("jinja2", EXTRA, PURPOSE)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOM / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["code"] = _mark_code
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":"), "allow_nan": False}
    has_interactive = _has_interactive(report)
    text = environment.get_template("page.html.j2").render(
        report=report,
        sections=[_cut_numbers(section) for section in report.sections if not section.is_empty],
        pictures=_draw(report, files, is_single),
        table_files=files.by_table,
        figure_files=files.by_figure,
        files=[] if is_single else [(path, about) for path, (_, about) in report.files.items()],
        has_interactive=has_interactive,
        inline=_read_inline_parts(has_interactive) if is_single else None,
    )
    return text.lstrip().encode()


def _mark_code(text: str) -> Any:
    """Return a text as markup in which what stands between backticks is code."""
    markup = require_package("markupsafe", EXTRA, PURPOSE)
    return markup.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(markup.escape(text))))


def _cut_numbers(section: Section) -> Section:
    """Return a section whose figures have tables that a page can hold."""
    from dataclasses import replace

    figures = []
    for figure in section.figures:
        if (table := figure.table) is not None and len(table.rows) > MAX_NUMBER_ROWS:
            note = f"the first {MAX_NUMBER_ROWS} of {len(table.rows)} rows; the file has all"
            short = Table(
                table.title,
                table.header,
                table.rows[:MAX_NUMBER_ROWS],
                footnotes=(*table.footnotes, note),
                left_columns=table.left_columns,
            )
            figure = replace(figure, table=short)
        figures.append(figure)
    return replace(section, figures=figures)


def _read_inline_parts(has_interactive: bool) -> dict[str, Any]:
    markup = require_package("markupsafe", EXTRA, PURPOSE).Markup
    scripts = {"js": (ROOM / "assets" / "report.js").read_bytes()}
    if has_interactive:
        scripts["plotly"] = _read_plotly()
    parts = {name: markup(_protect_script(script.decode())) for name, script in scripts.items()}
    return {**parts, "css": markup((ROOM / "assets" / "report.css").read_text("utf-8"))}


def _protect_script(script: str) -> str:
    """Return a script without the texts that end one, or hide its end, in a page."""
    return script.replace("</script", r"<\/script").replace("<!--", r"<\!--").replace("<script", r"<\script")


def _read_plotly() -> bytes:
    """Return Plotly's script, which the package of that name has."""
    package = require_package("plotly", EXTRA, PURPOSE)
    return (Path(package.__path__[0]) / "package_data" / "plotly.min.js").read_bytes()
