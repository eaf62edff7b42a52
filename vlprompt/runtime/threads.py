"""Threads that decode pictures: Pillow and torch let go of Python's lock while they decode and resize."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

MOST = 16  # threads by default: more only wait for Python's lock
WORTH = 2e-4  # seconds: what takes less is done where it is asked for, for handing it over takes as long

_asked: int | None = None
_pool: tuple[tuple[int, int], ThreadPoolExecutor] | None = None


def use(n: int | None) -> None:
    """So many threads from now on (0 or 1: all is done where it is asked for); None: one for each CPU, up to MOST.

    The processes of one machine share its CPUs. ValueError below 0.
    """
    global _asked
    if n is not None and n < 0:
        raise ValueError(f"pictures are decoded by 0 threads or more, not {n}")
    _asked = n


def count() -> int:
    """How many threads there are to be."""
    if _asked is not None:
        return _asked
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _threads() -> ThreadPoolExecutor:
    """The pool, opened when it is first needed, when their number was changed, and in a fork, which has no threads."""
    global _pool
    n, here = count(), os.getpid()
    if _pool is None or _pool[0] != (n, here):
        import torch

        if _pool is not None and _pool[0][1] == here:
            _pool[1].shutdown(wait=False)
        pool, all_here = ThreadPoolExecutor(n, "vlprompt-decoding"), threading.Barrier(n)

        def begin() -> None:
            torch.set_num_threads(1)  # of this thread: without it each would bring as many again
            all_here.wait()

        for begun in [pool.submit(begin) for _ in range(n)]:
            begun.result()
        torch.set_num_threads(torch.get_num_threads())  # the last who says it says it for threads still to come
        _pool = (n, here), pool
    return _pool[1]


def start(job: Callable[..., Any], *given: object) -> "Future[Any] | None":
    """A job that a thread does meanwhile; None where there are no threads."""
    return _threads().submit(job, *given) if count() > 1 else None


def each(job: Callable[[int], Any], places: Sequence[int]) -> tuple[list[Any], bool]:
    """job(place) for all places, in order, and whether they were worth handing over.

    The first is done here, to see. What a job raises is raised, and those not yet begun are left.
    """
    if not places:
        return [], False
    began = time.perf_counter()
    first = job(places[0])
    worth = time.perf_counter() - began > WORTH and count() > 1
    if not worth:
        return [first, *map(job, places[1:])], False
    pool = _threads()
    handed = [pool.submit(job, place) for place in places[1:]]
    try:
        return [first, *(one.result() for one in handed)], True
    finally:
        for one in handed:
            one.cancel()
