"""Options of the command line that say how the machine is used; no result depends on them."""

from typing import Annotated, Optional

import typer

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
        from vlprompt import memory

        memory.limit(gigabytes)


def use_pictures(workers: int | None, memory: float | None) -> None:
    """Decode by so many threads and keep so many GB (2**30 bytes) of it; ValueError for what can't be."""
    if memory is not None and not 0 <= memory < float("inf"):
        raise ValueError(f"--picture-memory is a number of GB from 0 on, such as 0.5; got {memory}")
    if workers is not None:
        from vlprompt import workers as threads

        threads.use(workers)
    if memory is not None:
        from vlprompt.data.decoded import HELD

        HELD.use(int(memory * 2**30))
