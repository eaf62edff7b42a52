"""Tables on a terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.segment import SegmentLines
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from vlprompt.results.published.aggregate import AggregatedResult
    from vlprompt.results.published.compare import Comparison
    from vlprompt.results.run_folder import Result
    from vlprompt.results.tables.benchmarks import BenchmarkScore
    from vlprompt.results.tables.formats import Table
    from vlprompt.results.tables.summary import ResultRow

MAX_WIDTH = 1000  # columns that a table may take: a narrower terminal wraps its lines, so that no number is cut
MIN_BENCHMARK_ROWS = 5  # methods; the table of fewer is transposed


def show_results(rows: "Sequence[ResultRow]", console: Console) -> None:
    """Print the tables of rows, transposed where a terminal is too narrow and no column may be dropped."""
    from vlprompt.results.tables.all_tables import build_tables
    from vlprompt.results.tables.summary import UNITS

    if not rows:
        console.print("no finished runs here yet; `vlprompt run coop digits` makes one")
        return
    tables = build_tables(rows)
    show_tables(
        [table if table.n_cost_columns or _fits_width(table, console) else table.transpose() for table in tables],
        console,
    )
    console.print(UNITS, style="dim", soft_wrap=True)


def show_warnings(lines: Sequence[str], console: Console) -> None:
    """Print a line for each warning."""
    for line in lines:
        console.print(line, style="yellow", markup=False, emoji=False, highlight=False, soft_wrap=True)


def show_tables(tables: "Sequence[Table]", console: Console) -> None:
    """Print tables with their footnotes, without as many of the droppable columns as the terminal is too narrow for."""
    for table in tables:
        n_columns = _choose_column_count(table, console)
        print_full_table(_build_rich_table(table, n_columns), console)
        for note in table.footnotes:
            console.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)
        if n_columns < len(table.header):
            dropped = ", ".join(table.header[n_columns:])
            console.print(f"({dropped}: in a wider terminal, or by --markdown)", style="dim")


def _choose_column_count(table: "Table", console: Console) -> int:
    """Drop no column, else all columns of cost, else one optional column after another."""
    n_all = len(table.header)
    n_required = n_all - table.n_cost_columns
    choices = [n_all, *range(n_required, n_required - table.n_optional_columns - 1, -1)]
    fitting = (n for n in choices if _measure_width(_build_rich_table(table, n), console) <= console.width)
    return next(fitting, choices[-1])


def print_full_table(table: RichTable, console: Console) -> None:
    """Print all columns; a terminal that is too narrow wraps the lines."""
    options = console.options.update(max_width=MAX_WIDTH)
    width = console.measure(table, options=options).maximum
    lines = console.render_lines(table, options.update(width=width), pad=False)
    console.print(SegmentLines(lines, new_lines=True), soft_wrap=True)


def _fits_width(table: "Table", console: Console) -> bool:
    return _measure_width(_build_rich_table(table, len(table.header)), console) <= console.width


def _measure_width(table: RichTable, console: Console) -> int:
    return console.measure(table, options=console.options.update(max_width=MAX_WIDTH)).maximum


def _build_rich_table(table: "Table", n_columns: int) -> RichTable:
    rich_table = RichTable(
        title=Text(table.title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="bold",
        padding=(0, 1, 0, 0),
    )
    for i, name in enumerate(table.header[:n_columns]):
        rich_table.add_column(Text(name), justify="left" if table.is_left_aligned(i) else "right", no_wrap=True)
    for cells in table.rows:
        rich_table.add_row(*map(Text, cells[:n_columns]))
    return rich_table


def show_benchmark_scores(scores_by_name: "dict[str, list[BenchmarkScore]]", console: Console) -> None:
    """Print the group means of sets of datasets, and why one is missing."""
    from vlprompt.data.dataset_groups import read_benchmarks
    from vlprompt.results.tables.benchmarks import BENCHMARK_UNITS, build_benchmark_tables, explain_missing_means

    for name, scores in scores_by_name.items():
        tables = build_benchmark_tables(scores, name, read_benchmarks()[name])
        is_small = len(scores) < MIN_BENCHMARK_ROWS
        show_tables([table.transpose() for table in tables] if is_small else tables, console)
        for line in explain_missing_means(scores):
            console.print(line, style="yellow", soft_wrap=True)
    if scores_by_name:
        console.print(BENCHMARK_UNITS, style="dim", soft_wrap=True)


def show_comparison(
    comparisons: "Sequence[Comparison]", unmatched: "Sequence[AggregatedResult]", console: Console
) -> None:
    """Print our results against the published ones."""
    from vlprompt.results.published.report import COMPARISON_UNITS, build_comparison_tables, describe_unmatched

    for table in build_comparison_tables(comparisons):
        show_tables([table], console)
        console.print()
    if comparisons:
        n, n_comparable = len(comparisons), sum(not c.reasons for c in comparisons)
        console.print(f"{n} numbers have a published counterpart, {n_comparable} of them comparable", highlight=False)
        console.print(COMPARISON_UNITS, style="dim", soft_wrap=True)
    if unmatched:
        console.print(describe_unmatched(unmatched), style="dim", markup=False, soft_wrap=True)
    if not comparisons and not unmatched:
        console.print("no finished runs here yet, so there is nothing to compare")


def describe_failures(n_failed: int) -> str:
    """Return the line above the errors of runs that failed."""
    return f"{n_failed} failed; the same command tries them again, once what the message names is mended:"


def report_missing_predictions(results: "list[Result]", console: Console) -> None:
    """Say which runs were finished before predictions were asked for, so that they have none."""
    for folder in (Path(result.folder) for result in results if result.folder):
        if not any(folder.glob("predictions-*.parquet")):
            text = f"no predictions in {folder}: it was tested before; vlprompt eval {folder} --keep-predictions FILE"
            console.print(f"{text} writes them", style="yellow", markup=False, highlight=False, soft_wrap=True)
