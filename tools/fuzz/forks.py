"""Forks of a process that begin and end as processes of their own, without the seconds that imports take."""

import atexit
import gc
import os
import sys
import traceback
import weakref
from collections.abc import Callable

CRASHED = 70


def fork(work: Callable[[], int]) -> int:
    """Fork a process that does some work and exits with the status that it returns; return the number of the fork."""
    if (process := os.fork()) == 0:
        status = CRASHED
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return process


def begin_process(output: int) -> None:
    """Forget what the parent would do at its end, and print into a file descriptor, which is closed."""
    atexit._clear()
    weakref.finalize._registry.clear()  # pyright: ignore[reportAttributeAccessIssue]  # they are the parent's
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))


def end_process() -> None:
    """Do what a process does at its end."""
    gc.collect()
    weakref.finalize._exitfunc()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
