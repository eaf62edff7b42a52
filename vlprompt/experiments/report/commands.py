"""The commands that make the runs of a report again."""

import re
from collections.abc import Sequence

from vlprompt.experiments.model_cards.run_command import build_run_command
from vlprompt.results.report.content import ReportTable
from vlprompt.results.tables.formats import Table
from vlprompt.results.tables.summary import ResultRow

SEED_OPTION = re.compile(r"--seed -?\d+")


def build_command_table(rows: Sequence[ResultRow]) -> ReportTable:
    """Build a table with one command for each row of results, over all its seeds."""
    header = ["method", "task", "dataset", "shots", "variant", "command"]
    cells = [
        [row.method, row.task, row.dataset, "all" if row.shots is None else str(row.shots), row.variant, _command(row)]
        for row in rows
    ]
    left = ("task", "dataset", "variant", "command")
    return ReportTable("commands", Table("Commands", header, cells, left_columns=left), code_columns=("command",))


def _command(row: ResultRow) -> str:
    seeds = ",".join(map(str, row.seeds))
    return SEED_OPTION.sub(f"--seed {seeds}", build_run_command(row.runs[0].config), count=1)
