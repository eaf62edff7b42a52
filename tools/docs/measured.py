"""Rows of the measured tables that are about one method."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from docs.paths import RESULTS_FOLDER

PAGES = ("methods", "image_towers", "streams", "domains", "language_models")
SEPARATOR = re.compile(r"^\|[ :|-]+\|$")


@dataclass(frozen=True)
class MeasuredTable:
    """The rows of one table that are about one method.

    Args:
        page: the file of the table, below docs/.
        heading: the last heading above it.
        headings: the line of its column names, and the separator.
        rows: its rows, as lines.
    """

    page: str
    heading: str
    headings: tuple[str, str]
    rows: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    page: str
    heading: str
    lines: tuple[str, ...]


def parse_tables(text: str, page: str) -> list[_Table]:
    """Return the tables of a page, each with the heading that it stands under."""
    tables, heading, lines, is_fenced = [], "", list[str](), False
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            is_fenced = not is_fenced
        if line.startswith("|") and not is_fenced:
            lines.append(line)
            continue
        if len(lines) > 2 and SEPARATOR.match(lines[1]):
            tables.append(_Table(page, heading, tuple(lines)))
        lines = []
        if line.startswith("#") and not is_fenced:
            heading = line.lstrip("# ")
    return tables


@cache
def _read_tables(folder: Path) -> tuple[_Table, ...]:
    tables = []
    for name in PAGES:
        path = folder / f"{name}.md"
        tables += parse_tables(path.read_text("utf-8"), f"results/{name}.md") if path.is_file() else []
    return tuple(tables)


def _first_cell(line: str) -> str:
    return line.split("|")[1].strip().strip("`")


def find_measured(method: str, folder: Path = RESULTS_FOLDER) -> list[MeasuredTable]:
    """Return the tables of docs/results with rows of a method: those whose first cell is its name, or "NAME on ..."."""
    found = []
    for one in _read_tables(folder):
        rows = [line for line in one.lines[2:] if re.fullmatch(rf"{method}(,? (on|with) .*)?", _first_cell(line))]
        if rows:
            found.append(MeasuredTable(one.page, one.heading, (one.lines[0], one.lines[1]), tuple(rows)))
    return found


def anchor(heading: str) -> str:
    """Return the id that a heading has on the site."""
    from markdown.extensions.toc import slugify

    return slugify(re.sub(r"[`*]", "", heading), "-")


def describe_measured(method: str, up: str) -> list[str]:
    """Return the section of a method's page; `up` leads from the page to docs/."""
    tables = find_measured(method)
    if not tables:
        return ["It was not measured on the embedded backbone.", ""]
    lines = []
    for one in tables:
        link = f"{up}{one.page}#{anchor(one.heading)}" if one.heading else f"{up}{one.page}"
        lines += [f"From [{one.heading or one.page}]({link}), where the command and the other rows are:", ""]
        lines += [*one.headings, *one.rows, ""]
    return lines
