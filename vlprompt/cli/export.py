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
    to: Annotated[
        str, typer.Option("--to", help="The format: peft, transformers (a merged language model) ...", metavar="FORMAT")
    ],
    backbone: MovedBackboneOption = None,
    device: DeviceOption = None,
) -> None:
    """Write a learned prompt in a format of another program."""
    from vlprompt.experiments.export.formats import ExportOptions, export_prompt

    options = ExportOptions()
    for line in export_prompt(run_folder, output_folder, to, options, backbone, device):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
