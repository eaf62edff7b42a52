"""Finished rows in a file, their targets, and Markdown tables."""

import hashlib
import json
import os
import re
from pathlib import Path

HERE = Path(__file__).parent
TARGET_PATTERN = re.compile(r"(\w+) (>=|<=) ([\d.]+)(?:, (\d+) threads?)?")


def hash_code(table):
    """Hash the code that a row of one table depends on: the library and the benchmark's own files."""
    mine = HERE / f"{table}.py"
    used = set(re.findall(r"^from bench(?: import |\.)(\w+)", mine.read_text("utf-8"), re.MULTILINE))
    files = [HERE / f"{name}.py" for name in {"measure", mine.stem, *used} - {"rows"}]
    files += (HERE.parents[1] / "vlprompt").rglob("*.py")
    found = hashlib.sha256()
    for path in sorted(files):
        found.update(path.relative_to(HERE.parents[1]).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


class RowStore:
    """Finished rows by their keys, as lines of JSON in a file (None: nowhere), one appended when it is done.

    What was torn by a kill is left out, so that its row is made again.
    """

    def __init__(self, path, fresh=False):
        self.path, self.rows = path, {}
        if path is None:
            return
        if path.is_file() and not fresh:
            for line in path.read_text("utf-8").splitlines():
                try:
                    key, row = json.loads(line)
                except ValueError:
                    continue
                self.rows[json.dumps(key)] = row
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        beside.write_text("".join(f"[{key}, {json.dumps(row)}]\n" for key, row in self.rows.items()), "utf-8")
        os.replace(beside, path)

    def get(self, key):
        return self.rows.get(json.dumps(key))

    def add(self, key, row):
        self.rows[json.dumps(key)] = row
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, row]) + "\n")


def make_number_column(format_spec):
    """Return a column that formats a number of a row, empty if the row has none."""
    key = format_spec.partition(":")[0]
    return lambda row: f"{{:{format_spec.partition(':')[2]}}}".format(row[key]) if row.get(key) is not None else ""


def format_spread(middle, least, largest):
    return f"{middle} ({least:.2f}-{largest:.2f})"


def format_ratio(row):
    if "ratio" not in row:
        return ""
    return format_spread(f"**{row['ratio']:.2f}**", row["min"], row["max"])


def format_kept(row):
    if not isinstance(row.get("kept"), float):
        return row.get("kept", "")
    return format_spread(f"{row['kept']:.2f}", row["kept_min"], row["kept_max"])


def format_tower_only(row):
    return f"{row['tower_only']:.4f} (x{row['fast'] / row['tower_only']:.2f})" if "tower_only" in row else ""


def format_cold(row):
    return f"{row['cold']:.3f} ({row['reference'] / row['cold']:.2f})" if "cold" in row else ""


def make_memory_column(key):
    """Return a column of megabytes, or of the reason why they are missing."""
    return lambda row: f"{v:.0f}" if isinstance(v := row.get(key, ""), float) else v


TIMING_COLUMNS = {  # a column's title -> its cell, of rows that measure.measure_benchmark made
    "written out s": make_number_column("reference:.3f"),
    "vlprompt s": make_number_column("fast:.4f"),
    "ratio (of rounds)": format_ratio,
    "memory kept": format_kept,
    "counted": make_number_column("flop_ratio:.1f"),
    "first time s (ratio)": format_cold,
    "bare s": format_tower_only,
    "GFLOP": lambda row: f"{row['flops'] / 1e9:.1f}" if "flops" in row else "",
    "matrix speed": lambda row: (
        f"{row['fraction_of_matmul_rate']:.0%} of {row['matmul_rate'] / 1e9:.0f} GFLOP/s"
        if "matmul_rate" in row
        else ""
    ),
    "written out MB": make_memory_column("reference_mb"),
    "vlprompt MB": make_memory_column("fast_mb"),
    "same": make_number_column("difference:.0e"),
}
TARGET_FORMATS = {  # a number of a row -> how a target of it is told
    "ratio": "{:.1f}x",
    "fraction_of_matmul_rate": "{:.0%} of the matrix speed",
    "mb": "{:.0f} MB",
    "memory_share": "{:.0%} of the written-out form's MB",
    "seconds": "{:.2f} s",
    "above": "{:.2f} s above import torch",
    "fast": "{:.1f} s",
    "operations": "{:.0f} operations",
    "share": "{:.0%} of the operations before",
    "limit_share": "{:.0%} of the tower's speed",
}


def judge_target(target, row):
    """Whether a row reaches what is wanted of it, such as "fraction_of_matmul_rate >= 0.8, 1 thread": (wanted,
    measured, reached).

    None where it is wanted with another number of threads; reached is None for a row that was not measured.
    """
    key, sign, bound, threads = TARGET_PATTERN.fullmatch(target).groups()
    if threads is not None and int(threads) != row["threads"]:
        return None
    bound, told = float(bound), TARGET_FORMATS.get(key, "{:.2f} " + key)
    told_bound = f"{'at least' if sign == '>=' else 'at most'} {told.format(bound)}"
    if key not in row:
        return told_bound, row.get("failed", "not measured"), None
    reached = row[key] >= bound if sign == ">=" else row[key] <= bound
    return told_bound, told.format(row[key]), reached


def judge_row(targets, row):
    """Judge all targets of a row."""
    return [found for wanted in targets if (found := judge_target(wanted, row)) is not None]


def format_reached(reached):
    return {True: "yes", False: "**no**", None: "?"}[reached]


def render_table(rows, columns, targets):
    """Render a Markdown table; columns in which every cell is empty are left out."""
    columns = {"work": lambda row: row["case"], "threads": make_number_column("threads:d"), **columns}
    columns["wanted"] = lambda row: "; ".join(
        f"{bound}: {format_reached(reached)}" for bound, _, reached in judge_row(targets.get(row["case"], ()), row)
    )
    columns["failed"] = lambda row: row.get("failed", "")
    cells = {title: [cell(row) for row in rows] for title, cell in columns.items()}
    return render_markdown({title: column for title, column in cells.items() if any(column)})


def render_markdown(columns):
    """Render a Markdown table of the columns with these titles."""
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    return lines + [f"| {' | '.join(cells)} |" for cells in zip(*columns.values(), strict=True)]


def render_targets(rows, targets, reasons):
    """Render the table of targets, one line for each target of each row; no lines without targets.

    reasons: (table, case) -> why it is not reached, as was measured; or a function of the row that says so.
    """
    found = [(row, *one) for row in rows for one in judge_row(targets.get((row["table"], row["case"]), ()), row)]
    if not found:
        return []
    titles = ("work", "threads", "wanted", "measured", "reached", "why not")
    cells = []
    for row, bound, measured, ok in found:
        why = reasons.get((row["table"], row["case"]), "") if ok is False else ""
        name = f"{row['table']}: {row['case']}"
        cells.append(
            (name, str(row["threads"]), bound, measured, format_reached(ok), why(row) if callable(why) else why)
        )
    return render_markdown(dict(zip(titles, zip(*cells, strict=True), strict=True)))
