"""The command `vlprompt plot`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vlprompt.cli.options import DEFAULT_RUNS_FOLDER, RunsArgument

console = Console()


def plot(
    runs_folder: RunsArgument = DEFAULT_RUNS_FOLDER,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="The first PNG: of shots, else of stages; default in RUNS.")
    ] = None,
) -> None:
    """Draw all finished runs: shots.png; of streams stages, matrix and prompts.png; of domains pseudo and pairs.png."""
    from vlprompt.results.plots.all_plots import draw_all_plots
    from vlprompt.results.run_folder import read_runs

    for path in draw_all_plots(read_runs(runs_folder)[0], runs_folder, figure):
        console.print(f"wrote {path}")
