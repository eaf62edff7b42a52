"""What tools/bench keeps and shows: finished rows in a file, what is wanted of them, and Markdown tables."""

import hashlib
import json
import os
import re
from pathlib import Path

HERE = Path(__file__).parent
WANTED = re.compile(r"(\w+) (>=|<=) ([\d.]+)(?:, (\d+) threads?)?")


def code(what):
    """A hash of the code that a row of one kind depends on: the library, and what of the tool makes the row."""
    mine = HERE / f"{what}.py"
    used = set(re.findall(r"^from bench(?: import |\.)(\w+)", mine.read_text("utf-8"), re.MULTILINE))
    files = [HERE / f"{name}.py" for name in {"measure", mine.stem, *used} - {"rows"}]
    files += (HERE.parents[1] / "vlprompt").rglob("*.py")
    found = hashlib.sha256()
    for path in sorted(files):
        found.update(path.relative_to(HERE.parents[1]).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


class Rows:
    """Finished rows by their keys, as lines of JSON in a file (None: nowhere), one appended when it is done.

    What was torn by a kill is left out, so that its row is made again.
    """

    def __init__(self, path, fresh=False):
        self.path, self.found = path, {}
        if path is None:
            return
        if path.is_file() and not fresh:
            for line in path.read_text("utf-8").splitlines():
                try:
                    key, row = json.loads(line)
                except ValueError:
                    continue
                self.found[json.dumps(key)] = row
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        beside.write_text("".join(f"[{key}, {json.dumps(row)}]\n" for key, row in self.found.items()), "utf-8")
        os.replace(beside, path)

    def get(self, key):
        return self.found.get(json.dumps(key))

    def keep(self, key, row):
        self.found[json.dumps(key)] = row
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, row]) + "\n")


def number(form):
    """A column of a row's number, empty where it has none."""
    key = form.partition(":")[0]
    return lambda row: f"{{:{form.partition(':')[2]}}}".format(row[key]) if row.get(key) is not None else ""


def ratio(row):
    if "ratio" not in row:
        return ""
    return f"**{row['ratio']:.2f}** ({row['least']:.2f}-{row['most']:.2f})"


def bare(row):
    return f"{row['bare']:.4f} (x{row['fast'] / row['bare']:.2f})" if "bare" in row else ""


def first(row):
    return f"{row['first']:.3f} ({row['written_out'] / row['first']:.2f})" if "first" in row else ""


def held(form):
    """A column of megabytes, or why there are none."""
    return lambda row: f"{v:.0f}" if isinstance(v := row.get(form, ""), float) else v


TIMED = {  # a column's title -> its cell, of rows that measure.measure made
    "written out s": number("written_out:.3f"),
    "vlprompt s": number("fast:.4f"),
    "ratio (of rounds)": ratio,
    "counted": number("counted:.1f"),
    "first time s (ratio)": first,
    "bare s": bare,
    "GFLOP": lambda row: f"{row['flops'] / 1e9:.1f}" if "flops" in row else "",
    "matrix speed": lambda row: f"{row['share']:.0%} of {row['rate'] / 1e9:.0f} GFLOP/s" if "share" in row else "",
    "written out MB": held("written_out_mb"),
    "vlprompt MB": held("fast_mb"),
    "same": number("same:.0e"),
}
TOLD = {  # a number of a row -> how a target of it is told
    "ratio": "{:.1f}x",
    "share": "{:.0%} of the matrix speed",
    "mb": "{:.0f} MB",
    "seconds": "{:.2f} s",
    "above": "{:.2f} s above import open_clip",
}


def judged(wanted, row):
    """Whether a row reaches what is wanted of it, such as "share >= 0.8, 1 thread": (wanted, measured, reached).

    None where it is wanted with another number of threads; reached is None for a row that was not measured.
    """
    key, sign, bound, threads = WANTED.fullmatch(wanted).groups()
    if threads is not None and int(threads) != row["threads"]:
        return None
    bound, told = float(bound), TOLD.get(key, "{:.2f} " + key)
    told_bound = f"{'at least' if sign == '>=' else 'at most'} {told.format(bound)}"
    if key not in row:
        return told_bound, row.get("failed", "not measured"), None
    reached = row[key] >= bound if sign == ">=" else row[key] <= bound
    return told_bound, told.format(row[key]), reached


def answers(targets, row):
    """All that is wanted of a row, judged."""
    return [found for wanted in targets if (found := judged(wanted, row)) is not None]


def said(reached):
    return {True: "yes", False: "**no**", None: "?"}[reached]


def table(rows, columns, targets):
    """Lines of a Markdown table, one row each; columns in which every cell is empty are left out."""
    columns = {"work": lambda row: row["case"], "threads": number("threads:d"), **columns}
    columns["wanted"] = lambda row: "; ".join(
        f"{bound}: {said(reached)}" for bound, _, reached in answers(targets.get(row["case"], ()), row)
    )
    columns["failed"] = lambda row: row.get("failed", "")
    cells = {title: [cell(row) for row in rows] for title, cell in columns.items()}
    return markdown({title: column for title, column in cells.items() if any(column)})


def markdown(columns):
    """Lines of a Markdown table of columns, by their titles."""
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    return lines + [f"| {' | '.join(cells)} |" for cells in zip(*columns.values(), strict=True)]


def reached(rows, targets):
    """Lines of the table of all that is wanted: one row for each target of each row; none where nothing is wanted."""
    found = [(row, *one) for row in rows for one in answers(targets.get((row["what"], row["case"]), ()), row)]
    if not found:
        return []
    titles = ("work", "threads", "wanted", "measured", "reached")
    cells = [(f"{row['what']}: {row['case']}", str(row["threads"]), bound, measured, said(ok))
             for row, bound, measured, ok in found]  # fmt: skip
    return markdown(dict(zip(titles, zip(*cells, strict=True), strict=True)))
