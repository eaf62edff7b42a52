"""The command `vlprompt push`."""

from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import ForceOption, LicenseOption, RunArgument

console = make_console()


def push(
    folder: RunArgument,
    name: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub.", metavar="OWNER/NAME")],
    license: LicenseOption = None,
    private: Annotated[
        bool, typer.Option("--private", help="Only you can see it; default: as your settings on the hub say.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Push a learned prompt to the Hugging Face hub, from a run or a model folder, by one commit."""
    from vlprompt.experiments.learned.publish import push_prompt

    address = push_prompt(folder, name, license=license, private=private or None, force=force)
    console.print(f"pushed {name}: {address}", markup=False, highlight=False, soft_wrap=True)
    line = f'load it by vlprompt.load_prompt("{name}"), or vlprompt predict {name} FILE ...'
    console.print(line, markup=False, highlight=False, soft_wrap=True)
