"""The command `vlprompt plot`."""

from pathlib import Path
from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import RunsArgument
from vlprompt.runtime.paths import DEFAULT_RUNS_FOLDER

console = make_console()


def plot(
    runs_folder: RunsArgument = DEFAULT_RUNS_FOLDER,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="The first PNG: of shots, else of stages; default in RUNS.")
    ] = None,
) -> None:
    """Draw all finished runs: shots.png; of streams stages, matrix and prompts.png; of domains pseudo and pairs.png."""
    from vlprompt.cli.display.terminal import show_warnings
    from vlprompt.results.plots.all_plots import draw_all_plots
    from vlprompt.results.run_scan import scan_runs

    scan = scan_runs(runs_folder)
    for path in draw_all_plots(scan.results, runs_folder, figure):
        console.print(f"wrote {path}")
    show_warnings(scan.describe_left_out(), console)
