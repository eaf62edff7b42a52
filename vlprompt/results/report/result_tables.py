"""Tables of a report: results with the best marked, the tests behind the marks, and the runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vlprompt.results.comparability import DOMAIN
from vlprompt.results.plots.figure import make_figure_name
from vlprompt.results.report.content import ReportTable
from vlprompt.results.run_folder import Result
from vlprompt.results.statistics import GroupComparison, compare_methods
from vlprompt.results.tables.all_tables import build_records, build_tables
from vlprompt.results.tables.formats import Table
from vlprompt.results.tables.summary import UNITS, ResultRow, format_label, group_by_table

BEST, NOT_WORSE = "best", "not-worse"
TEST_COLUMN = "against the best"
TEST_HEADER = ["method", "pairs", "behind the best", "p", "p corrected", "verdict"]


def build_result_tables(rows: Sequence[ResultRow]) -> list[ReportTable]:
    """Build the tables of results, with the best method and those that the test does not call worse marked."""
    tables = list[ReportTable]()
    for table_rows in group_by_table(rows):
        comparison, records = compare_methods(table_rows), build_records(table_rows, with_runs=False)
        for table in build_tables(table_rows):
            name = make_figure_name("results", *table.title.split(", ")[:1], str(len(tables) + 1))
            tables.append(_mark_best(ReportTable(name, table, UNITS, records), comparison))
    return tables


def _mark_best(item: ReportTable, comparison: GroupComparison) -> ReportTable:
    """Add a column with the outcome of the tests, and colour it; nothing where there is no best."""
    verdicts, table = describe_verdicts(comparison), item.table
    if not any(cells[0] in verdicts for cells in table.rows):
        return item
    index = len(table.header) - table.n_cost_columns
    rows = [[*cells[:index], verdicts.get(cells[0], ("", ""))[0], *cells[index:]] for cells in table.rows]
    marks = {(i, index): mark for i, cells in enumerate(rows) if (mark := verdicts.get(cells[0], ("", ""))[1])}
    test = f"{TEST_COLUMN}, by {comparison.metric}: {comparison.test}, alpha {comparison.alpha:g}, p with "
    test += f"{comparison.correction}; over the shots and seeds of this table"
    header = [*table.header[:index], TEST_COLUMN, *table.header[index:]]
    notes = (*table.footnotes, test, *comparison.notes)
    left = (*table.left_columns, TEST_COLUMN)
    return replace(
        item, table=replace(table, header=header, rows=rows, footnotes=notes, left_columns=left), marks=marks
    )


def describe_verdicts(comparison: GroupComparison) -> dict[str, tuple[str, str]]:
    """Return (verdict, mark) by the label of each method; {} without two methods."""
    if comparison.best is None or not comparison.comparisons:
        return {}
    verdicts = {comparison.best: ("best", BEST)}
    for c in comparison.comparisons:
        if c.is_worse is None:
            verdicts[c.label] = (f"no test, {c.n_pairs} pair{'s' * (c.n_pairs != 1)}", "")
        else:
            p = _format_p(c.p_corrected)
            verdicts[c.label] = (f"worse, p {p}", "") if c.is_worse else (f"not shown worse, p {p}", NOT_WORSE)
    return verdicts


def _format_p(p: float | None) -> str:
    return "" if p is None else "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def build_test_tables(rows: Sequence[ResultRow]) -> list[ReportTable]:
    """Build a table of tests for each task with several datasets: over all of them, their shots and seeds."""
    by_task: dict[str, list[ResultRow]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    tables = list[ReportTable]()
    for task, task_rows in by_task.items():
        datasets = list(dict.fromkeys(row.dataset for row in task_rows))
        comparison = compare_methods(task_rows)
        if len(datasets) > 1 and comparison.best is not None:
            tables.append(_build_test_table(task, datasets, comparison))
    return tables


def _build_test_table(task: str, datasets: Sequence[str], comparison: GroupComparison) -> ReportTable:
    verdicts = describe_verdicts(comparison)
    mean = "" if comparison.mean is None else f"mean {comparison.mean:.1f}"
    cells, marks = [[comparison.best or "", "", mean, "", "", "best"]], {(0, 5): BEST}
    for i, c in enumerate(comparison.comparisons, 1):
        verdict, mark = verdicts[c.label]
        difference = "" if c.difference is None else f"{c.difference:.2f}"
        cells.append([c.label, str(c.n_pairs), difference, _format_p(c.p), _format_p(c.p_corrected), verdict])
        marks |= {(i, 5): mark} if mark else {}
    title = f"{task} over {len(datasets)} datasets: {comparison.metric}"
    notes = (f"{comparison.test} (dataset, shots, seed), {comparison.correction}, alpha {comparison.alpha:g}",)
    table = Table(title, TEST_HEADER, cells, footnotes=(*notes, *comparison.notes), left_columns=("verdict",))
    return ReportTable(make_figure_name("tests", task), table, "points of the metric", marks=marks)


def build_run_table(rows: Sequence[ResultRow], environments: Mapping[str, str]) -> ReportTable:
    """Build the table of all runs.

    Args:
        rows: of the results.
        environments: folder of a run -> the number of its environment.
    """
    header = ["run", "task", "dataset", "method", "variant", "shots", "seed", "metric", "value", "s", "MB"]
    cells = [
        [*_name_run(row, run), *_format_run(row, run), environments.get(str(run.folder), "")]
        for row in rows
        for run in row.runs
    ]
    left = ("task", "dataset", "method", "variant", "metric")
    table = Table("All runs", [*header, "environment"], cells, left_columns=left)
    return ReportTable("runs", table, "percent; s: seconds, MB: peak memory")


def _name_run(row: ResultRow, run: Result) -> list[str]:
    name = Path(run.folder or "").name
    dataset = row.dataset
    if row.task == DOMAIN:
        dataset += f", {'+'.join(run.protocol['sources']) or 'none'} to {run.protocol['target']}"
    return [name, row.task, dataset, format_label(replace(row, variant=""), row.backbone), row.variant]


def _format_run(row: ResultRow, run: Result) -> list[str]:
    metric = row.main_metric
    value = run.summary.get(metric)
    shots = "all" if row.shots is None else str(row.shots)
    number = "" if value is None else f"{value:.2f}"
    seconds, memory = run.cost["seconds"], run.cost["peak_memory_mb"]
    return [shots, str(run.config["seed"]), metric.replace("_", " "), number, f"{seconds:.1f}", f"{memory:.0f}"]
