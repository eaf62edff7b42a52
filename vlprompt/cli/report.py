"""The command `vlprompt report`."""

from pathlib import Path
from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import expand_home

console = make_console()


def report(
    runs_folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs.", metavar="RUNS..."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Where index.html, figures and tables go; default: report.", callback=expand_home
        ),
    ] = None,
    single: Annotated[
        Path | None, typer.Option(help="Write one HTML file instead, without further files.", callback=expand_home)
    ] = None,
    title: Annotated[str, typer.Option(help="The title of the page.")] = "Results",
    with_learned: Annotated[
        bool,
        typer.Option("--look", help="Draw what some runs have learned, as `vlprompt look` does: seconds for each run."),
    ] = False,
) -> None:
    """Write all finished runs as a page: tables, figures, mistakes, commands to repeat them; no network needed."""
    from vlprompt.cli.display.terminal import show_warnings
    from vlprompt.experiments.report.build import build_report
    from vlprompt.results.atomic_files import write_atomically
    from vlprompt.results.report.folder import require_report_folder, require_single_path, write_report_folder
    from vlprompt.results.report.page import render_page_files, render_single_page, require_page_packages

    require_page_packages()
    folder = (None if single else Path("report")) if out is None else out
    if single is not None:
        require_single_path(single)
    if folder is not None:
        require_report_folder(folder)
    built = build_report([path.expanduser() for path in runs_folders], title, with_learned)
    if folder is not None:
        console.print(f"wrote {write_report_folder(folder, render_page_files(built))}", markup=False, soft_wrap=True)
    if single is not None:
        write_atomically(single, render_single_page(built))
        console.print(f"wrote {single}", markup=False, soft_wrap=True)
    show_warnings([line for section in built.sections if section.name == "left-out" for line in section.lines], console)
