"""All tables of a folder of runs, and their text in each format."""

from collections.abc import Sequence

from vlprompt.results.comparability import CONTINUAL, DOMAIN
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.domains import build_domain_tables, flatten_domain_rows
from vlprompt.results.tables.formats import Record, Table, is_for_programs, render_records, render_tables
from vlprompt.results.tables.summary import UNITS, ResultRow, build_task_tables, group_by_table, mark_protocols


def build_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """Build every table: those of the task domain by pairs, all others one per task and dataset."""
    tables = []
    for table_rows in group_by_table(rows):
        is_domain = table_rows[0].task == DOMAIN
        tables += build_domain_tables(table_rows) if is_domain else build_task_tables(table_rows)
    return tables


def build_records(rows: Sequence[ResultRow], with_runs: bool) -> list[Record]:
    """Flatten rows to records of plain numbers.

    Args:
        rows: rows of any tables.
        with_runs: add what each run of a stream or of domains has step by step.
    """
    records: list[Record] = []
    for table_rows in group_by_table(rows):
        if table_rows[0].task == DOMAIN:
            records += flatten_domain_rows(table_rows, with_runs)
        else:
            records += _flatten_task_rows(table_rows, with_runs)
    return records


def _flatten_task_rows(rows: Sequence[ResultRow], with_runs: bool) -> list[Record]:
    letters, notes = mark_protocols(rows)
    differences, records = dict(note.split(": ", 1) for note in notes), list[Record]()
    for row in rows:
        letter, record = letters[id(row)], row.to_flat_dict()
        if notes:
            record |= {"protocol": letter, "differs": differences.get(letter, "")}
        if with_runs and row.task == CONTINUAL:
            record["runs"] = [_summarize_continual_run(result) for result in row.runs]
        records.append(record)
    return records


def _summarize_continual_run(result: Result) -> Record:
    return {
        "seed": result.config["seed"],
        "class_order": result.protocol.get("class_order"),
        "matrix": result.accuracy_matrix,
        "stages": result.stages,
        "seen": [tests["seen"]["accuracy"] for tests in result.scores if "seen" in tests],
    }


def render_results(rows: Sequence[ResultRow], output_format: str) -> str:
    """Write the tables of rows as "markdown", "latex", "csv" or "json"."""
    if is_for_programs(output_format):
        return render_records(build_records(rows, with_runs=output_format == "json"), output_format)
    return render_tables(build_tables(rows), UNITS, output_format)
