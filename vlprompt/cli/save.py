"""The command `vlprompt save`."""

from pathlib import Path
from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import ForceOption, LicenseOption, RunArgument, expand_home

console = make_console()


def save(
    run_folder: RunArgument,
    output_folder: Annotated[
        Path, typer.Argument(help="Where to write; a new or empty folder.", metavar="FOLDER", callback=expand_home)
    ],
    license: LicenseOption = None,
    force: ForceOption = False,
) -> None:
    """Save a learned prompt as a model folder: safetensors, config.json and a model card, to share it."""
    from vlprompt.experiments.learned.model_folder import save_prompt
    from vlprompt.experiments.learned.state import read_learned_state

    state = read_learned_state(run_folder)
    save_prompt(state, output_folder, license=license, force=force)
    lines = [f"wrote {output_folder}: what was learned, its configuration and its card"]
    if license is None and state.provenance.get("license") is None:
        lines.append("the card has no licence; name one by --license before you share it")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
