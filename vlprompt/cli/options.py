"""Options of the command line that say how the machine is used; no result depends on them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from vlprompt.runtime import distributed


def numbers(text: str | None, what: str) -> list[int | None]:
    """ "1,2,4" -> [1, 2, 4]; nothing -> [None]."""
    if text is None:
        return [None]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--{what} takes whole numbers with commas between them, such as 1,2,4; got {text!r}"
        ) from None


SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Leave out image files that can't be decoded.")]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, cuda:1 ...; by default a GPU where there is one.")]  # noqa: UP045
Root = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--root", help="Where datasets with a card lie; default: VLPROMPT_DATA, else ./data."),
]


def use_root(root: Path | None) -> None:
    """The place of datasets is the machine's business, not a run's, so it goes into the environment."""
    if root is not None:
        os.environ["VLPROMPT_DATA"] = str(root.expanduser())


Features = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Where frozen features are kept, shared by runs; none: nowhere. Default: VLPROMPT_FEATURES, else the "
        "user's cache folder.",
        metavar="DIR|none",
    ),
]


def use_features(folder: str | None) -> None:
    """The place of features is the machine's business, not a run's, so it goes into the environment."""
    if folder is not None:
        os.environ["VLPROMPT_FEATURES"] = folder


Threads = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="CPU threads: by default all, but one for the embedded CLIP, which more only slow."),
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        help="Threads that decode images: by default one for each CPU, 16 at most; 0 or 1: none of their own."
    ),
]
PictureMemory = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="GB for decoded images: by default 1, or an eighth of a small memory; 0 keeps none."),
]
Memory = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="GB that the process (on a GPU: its tensors) may take in all; default: what is free."),
]


def use_memory(gigabytes: float | None) -> None:
    """ValueError for no number of GB (2**30 bytes)."""
    if gigabytes is not None:
        from vlprompt.runtime import memory

        memory.limit(gigabytes)


def use_pictures(workers: int | None, memory: float | None) -> None:
    """Decode by so many threads and keep so many GB (2**30 bytes) of it; ValueError for what can't be."""
    if memory is not None and not 0 <= memory < float("inf"):
        raise ValueError(f"--picture-memory is a number of GB from 0 on, such as 0.5; got {memory}")
    if workers is not None:
        from vlprompt.runtime import threads

        threads.use(workers)
    if memory is not None:
        from vlprompt.data.images.cache import HELD

        HELD.use(int(memory * 2**30))


Processes = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="How many processes there must be; torchrun --nproc-per-node N starts N of them."),
]


@contextmanager
def together(device: str | None, processes: int | None, out: Console) -> Iterator[tuple[str | None, Console]]:
    """The device of this process and where it writes: of several only the first is seen."""
    with distributed.opened(device, processes) as own:
        yield own, out if distributed.first() else Console(quiet=True)


def one_alone(context: typer.Context) -> None:
    """Commands other than `run` are done by one process."""
    if context.invoked_subcommand not in (None, "run"):
        distributed.alone(f"vlprompt {context.invoked_subcommand}")
