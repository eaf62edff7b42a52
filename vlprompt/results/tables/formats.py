"""One table value, and its writers: Markdown and LaTeX for readers, CSV and JSON for programs."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]  # one line of a CSV file, one object of a JSON file
OTHER_UNITS = {"threshold": "log odds"}  # of the metrics in a summary that are no percentages
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def name_with_unit(metric: str, usual_unit: str = "") -> str:
    """Return the name of a metric, with its unit where it is no percentage; of a percentage with `usual_unit`."""
    unit = OTHER_UNITS.get(metric, usual_unit)
    return f"{metric} ({unit})" if unit else metric


@dataclass(frozen=True)
class Table:
    """A table of formatted cells. The first column is aligned left, all others right.

    Args:
        title: one line above the table.
        header: the names of the columns.
        rows: cells, as many per row as the header has.
        n_cost_columns: how many of the last columns a narrow terminal drops first.
        n_optional_columns: how many of the columns before those it drops next.
        footnotes: lines below the table.
        left_columns: names of further columns that are aligned left.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    n_cost_columns: int = 0
    n_optional_columns: int = 0
    footnotes: tuple[str, ...] = ()
    left_columns: tuple[str, ...] = ()

    def is_left_aligned(self, column: int) -> bool:
        return column == 0 or self.header[column] in self.left_columns

    def transpose(self) -> "Table":
        """Exchange rows and columns: narrower for few methods and many tasks."""
        first, *rows = [list(cells) for cells in zip(self.header, *self.rows, strict=True)]
        return Table(self.title, ["", *first[1:]], rows, footnotes=self.footnotes)


def render_markdown(tables: Sequence[Table], units: str) -> str:
    parts = []
    for table in tables:
        rule = ["---" if table.is_left_aligned(i) else "---:" for i in range(len(table.header))]
        escaped = [[cell.replace("|", r"\|") for cell in cells] for cells in [table.header, rule, *table.rows]]
        lines = "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)
        notes = "\n\n" + "\n".join(f"- {note}" for note in table.footnotes) if table.footnotes else ""
        parts.append(f"**{table.title}** ({units})\n\n{lines}{notes}")
    return "\n\n".join(parts) + "\n"


def render_latex(tables: Sequence[Table], units: str) -> str:
    """Write each table as a `table` environment with the rules of booktabs."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(_render_latex_table(table, units) for table in tables)


def _render_latex_table(table: Table, units: str) -> str:
    alignment = "".join("l" if table.is_left_aligned(i) else "r" for i in range(len(table.header)))
    header, *rows = [" & ".join(map(escape_latex, cells)) + r" \\" for cells in [table.header, *table.rows]]
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(f'{table.title} ({units})')}}}"]
    lines += [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule"]
    lines += [r"\end{tabular}", *(rf"\par\footnotesize {escape_latex(note)}" for note in table.footnotes)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def escape_latex(text: str) -> str:
    escaped = "".join(LATEX_ESCAPES.get(character, character) for character in text)
    return escaped.replace("->", r"$\to$")


def render_json(records: Sequence[Record], ascii_only: bool = True) -> str:
    return json.dumps(records, indent=1, ensure_ascii=ascii_only) + "\n"


def render_csv(records: Sequence[Record], columns: Sequence[str] | None = None) -> str:
    """Write records as CSV, a list in a cell joined by "; ".

    Args:
        records: the lines.
        columns: the header; by default every key of the records, in the order of their first use.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(dict.fromkeys(key for record in records for key in record)))
    writer.writeheader()
    for record in records:
        writer.writerow({key: "; ".join(v) if isinstance(v, list | tuple) else v for key, v in record.items()})
    return text.getvalue()


def render_tables(tables: Sequence[Table], units: str, output_format: str) -> str:
    """Write tables as "markdown" or "latex"."""
    return {"markdown": render_markdown, "latex": render_latex}[output_format](tables, units)


def render_records(records: Sequence[Record], output_format: str) -> str:
    """Write records as "csv" or "json"."""
    return {"csv": render_csv, "json": render_json}[output_format](records)


def is_for_programs(output_format: str) -> bool:
    """Whether a format takes records of plain numbers instead of tables of formatted cells."""
    return output_format in ("csv", "json")
