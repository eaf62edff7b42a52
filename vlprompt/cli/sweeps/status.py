"""The command `vlprompt status`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import expand_home

if TYPE_CHECKING:
    from vlprompt.experiments.sweeps.status import SweepStatus

console = make_console()


def status(
    folder: Annotated[
        Path, typer.Argument(help="The folder that the sweep's --out named.", metavar="RUNS", callback=expand_home)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show where the sweeps of a folder stand: done, running and where, failed and why, and the time left."""
    import json
    from dataclasses import asdict

    from vlprompt.experiments.sweeps.status import read_status

    state = read_status(folder)
    if as_json:
        typer.echo(json.dumps(asdict(state)))
    else:
        _show(state)


def _show(state: "SweepStatus") -> None:
    from vlprompt.cli.display.sweep_table import build_progress_table, format_counts
    from vlprompt.experiments.events import SweepProgress

    progress = SweepProgress(
        state.n_runs, state.n_done, len(state.failed), state.running, seconds_left=state.seconds_left
    )
    console.print(build_progress_table(progress) if state.running else format_counts(progress), highlight=False)
    for name, error in state.failed.items():
        console.print(f"{name}: failed: {error}", style="red", highlight=False, soft_wrap=True)
    if state.n_waiting and not state.running:
        text = f"{state.n_waiting} runs wait, and no process works on them; the command of the sweep goes on"
        console.print(text, style="yellow", highlight=False, soft_wrap=True)
