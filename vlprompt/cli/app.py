"""The command line. Heavy libraries are imported by the commands that use them, so that --help is instant."""

import sys
from functools import cache
from typing import Annotated, Any

import typer

from vlprompt.cli.data import app as data_app
from vlprompt.cli.descriptions.attributes import attributes
from vlprompt.cli.descriptions.describe import describe
from vlprompt.cli.development.check import check
from vlprompt.cli.development.new import app as new_app
from vlprompt.cli.display.console import make_console
from vlprompt.cli.display.warnings import show_warnings
from vlprompt.cli.doctor import doctor
from vlprompt.cli.eval import evaluate
from vlprompt.cli.features import features
from vlprompt.cli.look import look
from vlprompt.cli.options import reject_extra_processes
from vlprompt.cli.plot import plot
from vlprompt.cli.predict import predict
from vlprompt.cli.report import report
from vlprompt.cli.run import run
from vlprompt.cli.search import search
from vlprompt.cli.sharing.export import export
from vlprompt.cli.sharing.push import push
from vlprompt.cli.sharing.save import save
from vlprompt.cli.sharing.serve import serve
from vlprompt.cli.sweeps.status import status
from vlprompt.cli.sweeps.sweep import sweep
from vlprompt.cli.table import table
from vlprompt.runtime.errors import explain_error, is_debugging
from vlprompt.runtime.installation import DISTRIBUTION, find_version

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Prompt learning on frozen vision-language and language models. "
    "Start with:  vlprompt run coop digits --shots 16 --seed 1,2,3",
)
app.add_typer(data_app, name="data")
app.add_typer(new_app, name="new")
data_app.command()(features)
for command in (
    run,
    sweep,
    status,
    predict,
    search,
    table,
    plot,
    look,
    report,
    describe,
    attributes,
    export,
    save,
    push,
    serve,
    check,
    doctor,
):
    app.command()(command)
app.command("eval")(evaluate)
console, error_console = make_console(), make_console(stderr=True)
FIRST_COMMANDS = """Prompt learning on frozen vision-language and language models. Start with one of these:

  vlprompt run coop digits --shots 16      # a prompt on real handwritten digits; nothing is downloaded
  vlprompt run coop path/to/images --shots 4 --backbone open_clip:ViT-B-16/openai
                                           # your images, one sub-folder per class, on a CLIP that is downloaded
  vlprompt list methods                    # all methods, by what they need and what they are for

vlprompt --help for all commands; vlprompt doctor says what is installed and seen."""
INTERRUPTED_STATUS = 130
RESUMABLE_COMMANDS = ("run", "sweep", "search", "describe", "data prepare")


def show_version(is_asked: bool) -> None:
    """Print the version and stop."""
    if is_asked:
        console.print(f"{DISTRIBUTION} {find_version(DISTRIBUTION) or 'that is not installed'}", highlight=False)
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=show_version)
    ] = False,
) -> None:
    """Show the commonest commands where none is given; refuse torchrun for all commands but `run`."""
    reject_extra_processes(context)
    if context.invoked_subcommand is None:
        console.print(FIRST_COMMANDS, highlight=False, soft_wrap=True)


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
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with show_warnings(error_console):
            status: Any = build_command()(arguments, standalone_mode=False)  # 130 of newer typers for Ctrl-C
    except KeyboardInterrupt:
        status = INTERRUPTED_STATUS
    except Exception as error:
        status = _report_error(error)
    if status == INTERRUPTED_STATUS:
        is_resumable = " ".join(words).startswith(RESUMABLE_COMMANDS)
        error_console.print("stopped; the same command goes on from here" if is_resumable else "stopped")
    raise SystemExit(status if isinstance(status, int) else 0)


@cache
def build_command() -> Any:
    """Return the command with all its options, which take longer to build than to parse."""
    return typer.main.get_command(app)


def _report_error(error: Exception) -> int:
    """Print an error in the input and return the exit status; raise a bug in this package."""
    # newer versions of typer carry their own click, so usage errors are recognised by their attributes
    if type(error).__name__ == "Abort" and not isinstance(error.__cause__ or error.__context__, EOFError):
        return INTERRUPTED_STATUS
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()  # pyright: ignore[reportAttributeAccessIssue]
        return error.exit_code  # pyright: ignore[reportAttributeAccessIssue]
    if is_debugging() or (message := explain_error(error)) is None:
        raise error
    error_console.print("error:", style="bold red", end=" ")
    error_console.print(message, markup=False, highlight=False, soft_wrap=True)
    return 2
