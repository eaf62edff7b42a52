"""Process group helpers: rank, world size and collectives.

`torchrun --no-python --nproc-per-node N vlprompt run ...` starts N processes. In a single process every function is a
no-op and torch.distributed is not imported.
"""

import atexit
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


T = TypeVar("T")
REQUIRED_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # besides WORLD_SIZE, as torchrun sets them
TIMEOUT = timedelta(hours=1)  # for a process that hangs; one that has died is noticed at once


class ProcessLostError(ConnectionError):
    """Another process of this run has ended."""


@dataclass
class _ProcessGroup:
    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this machine
    local_size: int = 1  # processes of this machine
    store: Any = None
    parent_pid: int = 0  # torchrun's process id; 0 where it did not start this one


_group = _ProcessGroup()


def get_world_size() -> int:
    """Return the number of processes."""
    return _group.size


def get_rank() -> int:
    """Return the rank of this process, from 0."""
    return _group.rank


def get_local_size() -> int:
    """Return the number of processes of this machine."""
    return _group.local_size


@contextmanager
def as_single_process() -> Iterator[None]:
    """Work as a run of one process does inside the with-block: nothing is divided, sent or waited for."""
    global _group
    group, _group = _group, _ProcessGroup()
    try:
        yield
    finally:
        _group = group


def is_main_process() -> bool:
    """Return whether this is rank 0, which writes files, prints and shows progress."""
    return not _group.rank


def read_world_size() -> int:
    """Return the number of processes in the environment; ValueError where variables that they need are missing."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or not int(text):
        raise ValueError(f"WORLD_SIZE: expected a number of processes, got {text}. Unset it.")
    n_processes = int(text)
    if n_processes > 1 and (missing := [name for name in REQUIRED_VARIABLES if name not in os.environ]):
        raise ValueError(
            f"WORLD_SIZE: expected {', '.join(missing)} with it, got WORLD_SIZE={n_processes} alone. Start the "
            f"processes by  {_format_torchrun_command(n_processes)}  or unset WORLD_SIZE."
        )
    return n_processes


def require_single_process(command: str) -> None:
    """ValueError where torchrun started a command of one process; ranks other than 0 exit."""
    if (n_processes := read_world_size()) > 1:
        if os.environ["RANK"] != "0":
            raise SystemExit(2)
        raise ValueError(f"{command}: expected one process, got {n_processes}. Give the command without torchrun.")


def _format_torchrun_command(processes: int) -> str:
    words = " ".join(shlex.quote(word) for word in sys.argv[1:]) or "run ..."
    return f"torchrun --no-python --nproc-per-node {processes} vlprompt {words}"


@contextmanager
def open_process_group(device: str | None = None, processes: int | None = None) -> Iterator[str | None]:
    """Join the processes that torchrun started; all of them must do the same in the with-block, in one order.

    An error in one process ends all of them, and one reports it.

    Args:
        device: as `load` takes it; "cuda", or None on a machine with GPUs, is a GPU of its own for each process.
        processes: how many there must be.

    Yields:
        The device of this process.

    Raises:
        ValueError: where the number of processes is another one, or there are fewer GPUs.
    """
    global _group
    n_processes = read_world_size()
    if processes is not None and processes != n_processes:
        started = "one process" if n_processes == 1 else f"{n_processes} processes"
        _reject(f"--processes: expected {processes}, got {started}. Give  {_format_torchrun_command(processes)}")
    if n_processes == 1:
        yield device
        return
    device = _choose_device(device)
    _group = _init_process_group(device)
    try:
        with warnings.catch_warnings():
            if not is_main_process():
                warnings.simplefilter("ignore")  # rank 0 shows them
            yield device
        all_gather(None)  # no process leaves while another still communicates
    except BaseException as error:
        _end_processes(error)
        raise
    import torch.distributed as dist

    dist.destroy_process_group()
    _group = _ProcessGroup()


def _reject(text: str) -> NoReturn:
    """End all processes by an error that each of them has found; rank 0 reports it."""
    if os.environ.get("RANK", "0") != "0":
        raise SystemExit(2)
    raise ValueError(text)


def _choose_device(device: str | None) -> str:
    """Return the device of this process."""
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda:"):
        _reject(
            f"--device: expected cuda for several processes, which can't share a GPU, got {device}. "
            "Set --device cuda, and each takes its own GPU."
        )
    if device not in ("cpu", "cuda"):
        _reject(f"--device: expected cpu or cuda for several processes, got {device}. Set --device cpu.")
    if device == "cpu":
        return device
    n_processes, n_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    local_rank = int(os.environ["LOCAL_RANK"])
    if max(n_processes, local_rank + 1) > n_gpus:
        _reject(
            f"--device: expected a CUDA device for each of the {n_processes} processes of this machine, got {n_gpus} "
            f"CUDA device{'s' * (n_gpus != 1)}. Start {n_gpus or 'no'} process{'es' * (n_gpus != 1)}, or set --device "
            "cpu."
        )
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"


def _init_process_group(device: str) -> _ProcessGroup:
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, world_size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"MASTER_ADDR, MASTER_PORT: expected an address at which all processes meet, got an error "
            f"({str(error).splitlines()[0]}). Start the processes by torchrun, or correct the address."
        ) from error
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    parent_pid = os.getppid() if by_torchrun else 0
    return _ProcessGroup(rank, world_size, int(os.environ["LOCAL_RANK"]), local_size, store, parent_pid)


def _end_processes(error: BaseException) -> None:
    """Let one process report the error and end the others at once; none waits for another."""
    try:
        reports = _group.store.add("vlprompt/told", 1) == 1
    except RuntimeError:  # the process that had the store has ended
        reports = is_main_process() or not isinstance(error, ProcessLostError)
    status = 130 if isinstance(error, KeyboardInterrupt) else 2
    if reports:
        atexit.register(_exit_process, status)  # after the report; closing the connections could hang or abort
    else:
        _exit_process(status)


def _exit_process(status: int) -> None:
    if "multiprocessing" in sys.modules:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def _detect_lost_process() -> Iterator[None]:
    """Turn the errors of a collective in the with-block into ProcessLostError."""
    if _group.parent_pid and os.getppid() != _group.parent_pid:
        raise ProcessLostError(
            "torchrun: expected a running parent process, got none. Give the same command again; it goes on from here."
        )
    try:
        yield
    except RuntimeError as error:
        cause = "" if "onnection" in str(error) else f" ({str(error).splitlines()[0]})"
        raise ProcessLostError(
            f"processes: expected {_group.size}, got fewer: another one has ended without an error message{cause}, "
            "as the system does when memory is full. Give the same command again; it goes on from here."
        ) from error


def all_gather(value: T) -> list[T]:
    """Return the value of each process, by rank: anything that can be pickled, with tensors on the CPU."""
    if _group.size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * _group.size
    with _detect_lost_process():
        dist.all_gather_object(values, value)
    return values


def broadcast_from_main(make: Callable[[], T]) -> T:
    """Return in all processes what rank 0 makes, and raise in all of them what it raises; the others make nothing."""
    if _group.size == 1:
        return make()
    import torch.distributed as dist

    values: list[Any] = [None, None]  # what was made, and the error
    if is_main_process():
        try:
            values[0] = make()
        except (ValueError, OSError) as error:
            values[1] = error
    with _detect_lost_process():
        dist.broadcast_object_list(values, 0)
    if values[1] is not None:
        raise values[1]
    return values[0]


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """Run the with-block in one process of each machine first; the others then find what it downloaded or unpacked."""
    if _group.local_rank:
        all_gather(None)
    yield
    if not _group.local_rank:
        all_gather(None)


def all_reduce_sum(tensors: Sequence["Tensor"]) -> "list[Tensor]":
    """Sum tensors over all processes; the sums are equal bit for bit in all of them."""
    if _group.size == 1 or not tensors:
        return list(tensors)
    import torch
    import torch.distributed as dist

    flat = torch.cat([x.detach().reshape(-1) for x in tensors])
    with _detect_lost_process():
        dist.all_reduce(flat)
    parts = flat.split([x.numel() for x in tensors])
    return [part.view(x.shape).to(x.dtype) for part, x in zip(parts, tensors, strict=True)]
