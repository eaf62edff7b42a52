"""Make the tables of the README from what they stand on: the methods' files and the demo's table of results.

`python tools/docs/readme_tables.py` writes them between their marks in README.md; a test holds that they are current.
"""

import re
import sys
from pathlib import Path

from vlprompt.cli.listing import group_methods

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DEMO_RESULTS = ROOT / "tools/results/demo.md"
LEFT_OUT = ("n", "%", "MB")  # columns of the demo's tables that a first look does not need


def make_method_table() -> str:
    """Return a Markdown table of the methods by what they need and what they are for."""
    rows: dict[tuple[str, str], list[str]] = {}
    for group in group_methods():
        for entry in group.methods:
            link = f"[{entry.title}](vlprompt/methods/{entry.name}.py)"
            rows.setdefault((entry.needs, entry.use), []).append(link)
    lines = ["| on | for | methods |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {needs} | {use} | {', '.join(links)} |" for (needs, use), links in rows.items())])


def make_demo_tables() -> str:
    """Return the tables of the demo without their columns for specialists."""
    lines: list[str] = []
    columns: list[int] = []
    for line in DEMO_RESULTS.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            columns = []
            lines.append(re.sub(r" \(percent.*", "", line))
            continue
        columns = columns or [i for i, cell in enumerate(cells) if cell not in LEFT_OUT]
        lines.append("| " + " | ".join(cells[i] for i in columns) + " |")
    return "\n".join(lines).strip()


TABLES = {"methods": make_method_table, "demo": make_demo_tables}


def fill_tables(text: str) -> str:
    """Return a text whose marked places hold the current tables; KeyError for a mark of another name."""
    pattern = re.compile(r"(<!-- table: (\w+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


if __name__ == "__main__":
    README.write_text(fill_tables(README.read_text("utf-8")), "utf-8")
    sys.stdout.write(f"wrote the tables of {README.name}\n")
