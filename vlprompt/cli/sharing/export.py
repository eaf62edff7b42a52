"""The command `vlprompt export`."""

from pathlib import Path
from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import DeviceOption, MovedBackboneOption, RunArgument, expand_home
from vlprompt.experiments.export.formats import FORMATS, ExportOptions, export_prompt

console = make_console()
FORMAT_HELP = "; ".join(f"{name}: {known.description}" for name, known in FORMATS.items())


def export(
    run_folder: RunArgument,
    output_folder: Annotated[
        Path, typer.Argument(help="Where to write; a new or empty folder.", metavar="FOLDER", callback=expand_home)
    ],
    to: Annotated[str, typer.Option("--to", help=f"{FORMAT_HELP}.", metavar="FORMAT")],
    classes: Annotated[
        Path | None,
        typer.Option(
            "--classes",
            help="A text file of class names, one a line, instead of those the run was trained on.",
            metavar="FILE",
            callback=expand_home,
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the weights to 8 bits, where the format can.")] = False,
    backbone: MovedBackboneOption = None,
    device: DeviceOption = None,
) -> None:
    """Write a learned prompt in a format of another program."""
    from vlprompt.experiments.export.class_list import read_class_file

    options = ExportOptions(None if classes is None else read_class_file(classes), int8)
    for line in export_prompt(run_folder, output_folder, to, options, backbone, device):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
