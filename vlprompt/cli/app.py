"""The command line. Heavy libraries are imported by the commands that use them, so that --help is instant."""

from typing import Annotated, Any

import typer
from rich.console import Console

from vlprompt.cli.data import app as data_app
from vlprompt.cli.features import features
from vlprompt.cli.options import one_alone
from vlprompt.cli.predict import eval_, predict
from vlprompt.cli.results import export, plot, table
from vlprompt.cli.run import run
from vlprompt.cli.search import search
from vlprompt.runtime.errors import explained

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Prompt learning on frozen vision-language and language models. "
    "Start with:  vlprompt run coop digits --shots 16 --seed 1,2,3",
)
app.callback()(one_alone)
app.add_typer(data_app, name="data")
data_app.command()(features)
for command in (run, predict, search, table, plot, export):
    app.command()(command)
app.command("eval")(eval_)
out, err = Console(), Console(stderr=True)
STOPPED = "stopped; the same command goes on from here"


@app.command()
def show(method: Annotated[str, typer.Argument(help="A method's name; `vlprompt list methods` gives them.")]) -> None:
    """What a method is: its paper, its arguments and their defaults, its recipes with their expected numbers."""
    from vlprompt.cli.listing import describe_method

    for line in describe_method(method):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command("list")
def list_(what: Annotated[str, typer.Argument(help="methods, tasks, datasets, backbones or looks.")]) -> None:
    """Name what there is."""
    from vlprompt.cli.listing import listing

    for line in listing(what):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a mistake in the input ends in one line and exit status 2, without a traceback."""
    try:
        status: Any = app(arguments, standalone_mode=False)
    except (KeyboardInterrupt, Exception) as error:
        # typer carries a click of its own in newer versions, so usage errors are known by what they can do
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
            err.print(STOPPED)
            raise SystemExit(130) from None
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            raise SystemExit(error.exit_code) from None  # pyright: ignore[reportAttributeAccessIssue]
        if (told := explained(error)) is None:
            raise
        err.print("[bold red]error:[/]", end=" ")
        err.print(told, markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    raise SystemExit(status if isinstance(status, int) else 0)
