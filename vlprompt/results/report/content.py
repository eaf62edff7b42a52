"""What a report holds, before it is a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlprompt.results.plots.figure import Figure
from vlprompt.results.tables.formats import Record, Table


@dataclass(frozen=True)
class ReportTable:
    """A table of a report.

    Args:
        name: of its files, without suffix.
        table: the cells.
        units: what the numbers are.
        records: plain numbers for the CSV file; by default the cells.
        marks: (row, column) of a cell -> "best" or "not-worse".
        code_columns: names of columns that hold commands.
    """

    name: str
    table: Table
    units: str = ""
    records: Sequence[Record] = ()
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)
    code_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportImage:
    """An image with its caption.

    Args:
        jpeg: the file's bytes.
        caption: below the image, and its text alternative.
    """

    jpeg: bytes
    caption: str


@dataclass(frozen=True)
class ImageGroup:
    """Images under one title.

    Args:
        title: what they have in common.
        images: in the order of their display.
    """

    title: str
    images: Sequence[ReportImage]


@dataclass(frozen=True)
class Gallery:
    """Groups of images side by side."""

    title: str
    groups: Sequence[ImageGroup]


@dataclass(frozen=True)
class Section:
    """A part of a report, with a title in the table of contents.

    Args:
        name: of its anchor.
        title: one line.
        texts: paragraphs.
        tables: shown first.
        figures: then.
        galleries: last.
        lines: a list of remarks.
    """

    name: str
    title: str
    texts: Sequence[str] = ()
    tables: Sequence[ReportTable] = ()
    figures: Sequence[Figure] = ()
    galleries: Sequence[Gallery] = ()
    lines: Sequence[str] = ()

    @property
    def is_empty(self) -> bool:
        return not any((self.texts, self.tables, self.figures, self.galleries, self.lines))


@dataclass(frozen=True)
class Report:
    """A page of results.

    Args:
        title: of the page.
        summary: below the title.
        sections: those that are empty are left out.
        files: further files beside the page, by name, with a line about each.
    """

    title: str
    summary: str
    sections: Sequence[Section]
    files: Mapping[str, tuple[bytes, str]] = field(default_factory=dict)
