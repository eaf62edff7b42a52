"""Threads that decode images: Pillow and torch release Python's lock while they decode and resize."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from vlprompt.runtime.settings import SETTINGS

T = TypeVar("T")
MAX_WORKERS = 16  # threads by default: more only wait for Python's lock
MIN_JOB_SECONDS = 2e-4  # a shorter job is done by the caller, for handing it over takes as long


@dataclass
class _Pool:
    n_workers: int
    process_id: int
    executor: ThreadPoolExecutor


_pool: _Pool | None = None


def set_workers(n: int | None) -> None:
    """Set how many threads decode.

    Args:
        n: 0 or 1 for none besides the caller; None for one for each CPU, up to MAX_WORKERS, where the processes of one
            machine share its CPUs.
    """
    if n is not None and n < 0:
        raise ValueError(f"--workers: expected at least 0 threads, got {n}. Set --workers 0 or more.")
    SETTINGS.decode_workers = n


def count_workers() -> int:
    """Return how many threads decode."""
    if SETTINGS.decode_workers is not None:
        return SETTINGS.decode_workers
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _get_executor() -> ThreadPoolExecutor:
    """Return the pool: opened when first needed, when the number of threads changed, and in a fork, which has none."""
    global _pool
    n_workers, process_id = count_workers(), os.getpid()
    if _pool is None or (_pool.n_workers, _pool.process_id) != (n_workers, process_id):
        if _pool is not None and _pool.process_id == process_id:
            _pool.executor.shutdown(wait=False)
        _pool = _Pool(n_workers, process_id, _start_executor(n_workers))
    return _pool.executor


def _start_executor(n_workers: int) -> ThreadPoolExecutor:
    import torch

    executor, barrier = ThreadPoolExecutor(n_workers, "vlprompt-decoding"), threading.Barrier(n_workers)

    def begin() -> None:
        torch.set_num_threads(1)  # of this thread: without it each would start as many again
        barrier.wait()

    for future in [executor.submit(begin) for _ in range(n_workers)]:
        future.result()
    torch.set_num_threads(torch.get_num_threads())  # the last call counts for threads that start later
    return executor


def submit(job: Callable[..., T], *arguments: object) -> "Future[T] | None":
    """Start a job in a thread; None where there are no threads."""
    return _get_executor().submit(job, *arguments) if count_workers() > 1 else None


def map_indices(job: Callable[[int], T], indices: Sequence[int]) -> tuple[list[T], bool]:
    """Do a job for each index, in threads where that is worth it; the first is done here, to measure.

    The error of a job is raised, and jobs that have not begun are cancelled.

    Returns:
        The results in order, and whether threads did them.
    """
    if not indices:
        return [], False
    start = time.perf_counter()
    first = job(indices[0])
    if time.perf_counter() - start <= MIN_JOB_SECONDS or count_workers() <= 1:
        return [first, *map(job, indices[1:])], False
    executor = _get_executor()
    futures = [executor.submit(job, index) for index in indices[1:]]
    try:
        return [first, *(future.result() for future in futures)], True
    finally:
        for future in futures:
            future.cancel()
