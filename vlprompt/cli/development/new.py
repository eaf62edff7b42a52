"""The commands `vlprompt new ...`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import expand_home

app = typer.Typer(no_args_is_help=True, help="Begin something of your own: a method.")
console = make_console()


@app.callback()
def new() -> None:
    """Begin something of your own: a method."""


@app.command()
def method(
    name: Annotated[str, typer.Argument(help="Of the module, as in my_method; the class is then MyMethod.")],
    folder: Annotated[
        Path | None, typer.Argument(help="Where the files go; default: here.", metavar="[FOLDER]", callback=expand_home)
    ] = None,
    kind: Annotated[
        Literal["clip", "tower", "wrapper", "language"],
        typer.Option(help="What it is on: a CLIP, an image tower, another method, or a language model."),
    ] = "clip",
) -> None:
    """Write a method that works, its recipe and its test; files that exist are never overwritten."""
    from vlprompt.testing.new_method import write_new_method

    written = write_new_method(name, kind, folder or Path())
    run = f"vlprompt run -c {written.recipe}" + (" --backbone hf:FOLDER" if kind == "language" else "")
    for path, use in (
        (written.method, "the class: change it"),
        (written.recipe, run),
        (written.test, f"pytest {written.test}"),
    ):
        console.print(f"{path}  {use}", highlight=False, soft_wrap=True)
    console.print(f"now: vlprompt check {written.title}", highlight=False, soft_wrap=True)
