"""The command `vlprompt export`."""

from pathlib import Path
from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import DeviceOption, MovedBackboneOption, RunArgument

console = make_console()


def export(
    run_folder: RunArgument,
    output_folder: Annotated[Path, typer.Argument(help="Where to write; a new or empty folder.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="The whole model with what was learned in its weights, in float32.")
    ] = False,
    backbone: MovedBackboneOption = None,
    device: DeviceOption = None,
) -> None:
    """Write what was learned on a language model as an adapter that PEFT loads, or as a whole model."""
    from vlprompt.experiments.export.peft import export_run

    for line in export_run(run_folder, output_folder, backbone, device, merge):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
