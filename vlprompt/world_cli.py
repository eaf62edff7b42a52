"""What the command line knows of several processes: an option, and who of them speaks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Optional

import typer
from rich.console import Console

from vlprompt import world

Processes = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="How many processes there must be; torchrun --nproc-per-node N starts N of them."),
]


@contextmanager
def together(device: str | None, processes: int | None, out: Console) -> Iterator[tuple[str | None, Console]]:
    """The device of this process and where it writes: of several only the first is seen."""
    with world.opened(device, processes) as own:
        yield own, out if world.first() else Console(quiet=True)


def one_alone(context: typer.Context) -> None:
    """Commands other than `run` are done by one process."""
    if context.invoked_subcommand not in (None, "run"):
        world.alone(f"vlprompt {context.invoked_subcommand}")
