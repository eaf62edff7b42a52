"""The command `vlprompt table`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.runtime.paths import DEFAULT_RUNS_FOLDER

if TYPE_CHECKING:
    from vlprompt.results.published.aggregate import AggregatedResult
    from vlprompt.results.published.compare import Comparison
    from vlprompt.results.tables.benchmarks import BenchmarkScore
    from vlprompt.results.tables.summary import ResultRow

console = make_console()


def table(
    runs_folders: Annotated[
        list[Path] | None,
        typer.Argument(help=f"Folders of runs; default: {DEFAULT_RUNS_FOLDER}.", metavar="RUNS"),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write it as Markdown.")] = None,
    latex: Annotated[Path | None, typer.Option(help="Also write it as LaTeX (booktabs).")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write every number as CSV.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write every number as JSON.")] = None,
    against: Annotated[
        str | None,
        typer.Option(help="published: compare with the published numbers; the files then hold the comparison."),
    ] = None,
    benchmark: Annotated[str | None, typer.Option(help="A set of datasets (vtab): group means, in files too.")] = None,
) -> None:
    """Mean and spread over seeds of all finished runs in folders, with trained parameters, seconds and peak memory."""
    from vlprompt.cli.display.terminal import show_benchmark_scores, show_comparison, show_results, show_warnings
    from vlprompt.experiments.paper_recipes import compare_with_published
    from vlprompt.results.published.report import validate_target
    from vlprompt.results.run_scan import mark_changed_inputs, scan_runs
    from vlprompt.results.tables.benchmarks import score_benchmarks
    from vlprompt.results.tables.summary import build_rows

    if against is not None:
        validate_target(against)
    scan = scan_runs(*(path.expanduser() for path in runs_folders or [DEFAULT_RUNS_FOLDER]))
    results = [mark_changed_inputs(result) for result in scan.results]
    rows, scores = build_rows(results), score_benchmarks(results, benchmark)
    if benchmark is None:
        show_results(rows, console)
    show_benchmark_scores(scores, console)
    comparison = None if against is None else compare_with_published(results)
    if comparison is not None:
        show_comparison(*comparison, console)
    show_warnings(scan.describe_left_out(), console)
    files = {"markdown": markdown, "latex": latex, "csv": csv, "json": json}
    _write_files(files, rows, comparison, None if benchmark is None else scores)
    if scan.broken and not results:
        raise typer.Exit(2)  # there are results, but none can be shown


def _write_files(
    files: dict[str, Path | None],
    rows: "Sequence[ResultRow]",
    comparison: "tuple[list[Comparison], list[AggregatedResult]] | None",
    scores: "dict[str, list[BenchmarkScore]] | None",
) -> None:
    """Write each format that has a path: the scores of a benchmark, else the comparison, else the rows."""
    from vlprompt.results.atomic_files import write_atomically
    from vlprompt.results.published.report import render_comparison
    from vlprompt.results.tables.all_tables import render_results
    from vlprompt.results.tables.benchmarks import render_benchmarks

    for output_format, path in files.items():
        if path is None:
            continue
        if scores is not None:
            text = render_benchmarks(scores, output_format)
        elif comparison is not None:
            text = render_comparison(*comparison, output_format)
        else:
            text = render_results(rows, output_format)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
        console.print(f"wrote {path}")
