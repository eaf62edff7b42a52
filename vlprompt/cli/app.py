"""The command line. Heavy libraries are imported by the commands that use them, so that --help is instant."""

from typing import Annotated, Any

import typer
from rich.console import Console

from vlprompt.cli.data import app as data_app
from vlprompt.cli.eval import evaluate
from vlprompt.cli.export import export
from vlprompt.cli.features import features
from vlprompt.cli.options import reject_extra_processes
from vlprompt.cli.plot import plot
from vlprompt.cli.predict import predict
from vlprompt.cli.run import run
from vlprompt.cli.search import search
from vlprompt.cli.table import table
from vlprompt.runtime.errors import explain_error

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Prompt learning on frozen vision-language and language models. "
    "Start with:  vlprompt run coop digits --shots 16 --seed 1,2,3",
)
app.callback()(reject_extra_processes)
app.add_typer(data_app, name="data")
data_app.command()(features)
for command in (run, predict, search, table, plot, export):
    app.command()(command)
app.command("eval")(evaluate)
console, error_console = Console(), Console(stderr=True)
INTERRUPTED_MESSAGE = "stopped; the same command goes on from here"


@app.command()
def show(method: Annotated[str, typer.Argument(help="A method's name; `vlprompt list methods` gives them.")]) -> None:
    """Describe a method: its paper, its arguments and their defaults, its recipes and their expected numbers."""
    from vlprompt.cli.listing import describe_method

    for line in describe_method(method):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command("list")
def list_(kind: Annotated[str, typer.Argument(help="methods, tasks, datasets, backbones or preprocess.")]) -> None:
    """List the methods, tasks, datasets, backbones or preprocessing presets."""
    from vlprompt.cli.listing import list_entries

    for line in list_entries(kind):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; an error in the input ends in one line and exit status 2, without a traceback."""
    try:
        status: Any = app(arguments, standalone_mode=False)
    except (KeyboardInterrupt, Exception) as error:
        # newer versions of typer carry their own click, so usage errors are recognised by their attributes
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
            error_console.print(INTERRUPTED_MESSAGE)
            raise SystemExit(130) from None
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            raise SystemExit(error.exit_code) from None  # pyright: ignore[reportAttributeAccessIssue]
        if (message := explain_error(error)) is None:
            raise
        error_console.print("[bold red]error:[/]", end=" ")
        error_console.print(message, markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    raise SystemExit(status if isinstance(status, int) else 0)
