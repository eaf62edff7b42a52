"""The processes of one run: how many, which one this is, and what they tell each other.

`torchrun --no-python --nproc-per-node N vlprompt run ...` starts N of them. Alone nothing here costs anything: every
function gives what it was given, and torch.distributed is not touched.
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
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


T = TypeVar("T")
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # beside WORLD_SIZE, as torchrun sets them
PATIENCE = timedelta(hours=1)  # for a process that lives and says nothing; one that has died is noticed at once


class Lost(ConnectionError):
    """Another process of this run is gone."""


@dataclass
class _World:
    rank: int = 0
    size: int = 1
    local: int = 0  # which of the processes on this machine
    store: Any = None
    parent: int = 0  # torchrun's process id; 0 where it did not start this one


_now = _World()


def size() -> int:
    """How many processes there are."""
    return _now.size


def rank() -> int:
    """Which one this is, from 0."""
    return _now.rank


def first() -> bool:
    """Whether this is the one that writes, prints and shows progress."""
    return not _now.rank


def asked() -> int:
    """How many processes the environment speaks of; ValueError where it does not say all that they need."""
    told = os.environ.get("WORLD_SIZE", "1")
    if not told.isdecimal() or not int(told):
        raise ValueError(f"the environment says WORLD_SIZE={told}, which is no number of processes: unset it")
    if int(told) > 1 and (missing := [name for name in NEEDED if name not in os.environ]):
        raise ValueError(
            f"the environment says WORLD_SIZE={told}, but not {', '.join(missing)}, by which they find each other: "
            f"start them by  {_command(int(told))}  or unset WORLD_SIZE"
        )
    return int(told)


def alone(what: str) -> None:
    """ValueError where several processes were started for something that one does; all but the first just end."""
    if (many := asked()) > 1:
        if os.environ["RANK"] != "0":
            raise SystemExit(2)
        raise ValueError(f"{what} is done by one process, and {many} were started: give the command without torchrun")


def _command(processes: int) -> str:
    words = " ".join(shlex.quote(word) for word in sys.argv[1:]) or "run ..."
    return f"torchrun --no-python --nproc-per-node {processes} vlprompt {words}"


@contextmanager
def opened(device: str | None = None, processes: int | None = None) -> Iterator[str | None]:
    """Together with the other processes that torchrun has started, or alone; gives the device of this one.

    device: as `load` takes it; "cuda", or None where there is one, is another GPU for each process. processes: how many
    there must be. ValueError where there are others, or more than GPUs. All that is done within must be done by all, in
    one order. An error in one of them ends all; of them one tells it.
    """
    global _now
    many = asked()
    if processes is not None and processes != many:
        came = "one process was started" if many == 1 else f"{many} processes were started"
        _refuse(f"--processes={processes} was asked for, and {came}: give  {_command(processes)}")
    if many == 1:
        yield device
        return
    device = _device(device)
    _now, warned = _begun(device), warnings.catch_warnings()
    try:
        with warned:
            if not first():
                warnings.simplefilter("ignore")  # the first one tells them
            yield device
        gather(None)  # nobody leaves while another still speaks
    except BaseException as error:
        _end(error)
        raise
    import torch.distributed as dist

    dist.destroy_process_group()
    _now = _World()


def _refuse(text: str) -> None:
    """What all processes find wrong before they know each other; the first one tells it."""
    if os.environ.get("RANK", "0") != "0":
        raise SystemExit(2)
    raise ValueError(text)


def _device(device: str | None) -> str:
    """The device of this process."""
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda:"):
        _refuse(f"several processes can't share {device}: say --device cuda, and each takes its own GPU")
    if device not in ("cpu", "cuda"):
        _refuse(f"several processes train on CPUs or on CUDA GPUs, not on {device}: say --device cpu")
    if device == "cpu":
        return device
    here, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if max(here, int(os.environ["LOCAL_RANK"]) + 1) > found:
        _refuse(
            f"{here} processes were started here, and there {'is' if found == 1 else 'are'} {found} CUDA "
            f"device{'s' * (found != 1)}: start {found or 'none'} for them, or say --device cpu"
        )
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return f"cuda:{os.environ['LOCAL_RANK']}"


def _begun(device: str) -> _World:
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, many = next(iter(rendezvous("env://", timeout=PATIENCE)))
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=many, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the processes did not find each other ({str(error).splitlines()[0]})") from error
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    return _World(rank, many, int(os.environ["LOCAL_RANK"]), store, os.getppid() if by_torchrun else 0)


def _end(error: BaseException) -> None:
    """One process tells what went wrong, the others end at once; none waits for another any more."""
    try:
        speaks = _now.store.add("vlprompt/told", 1) == 1
    except RuntimeError:  # who kept the store is gone
        speaks = first() or not isinstance(error, Lost)
    status = 130 if isinstance(error, KeyboardInterrupt) else 2
    if speaks:
        atexit.register(_leave, status)  # after it was told; the connections' own end could wait, or abort
    else:
        _leave(status)


def _leave(status: int) -> None:
    if "multiprocessing" in sys.modules:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def _heard() -> Iterator[None]:
    """Whatever is said between processes is said in here; Lost where one of them is gone."""
    if _now.parent and os.getppid() != _now.parent:
        raise Lost("torchrun, which started these processes, is gone; the same command goes on from here")
    try:
        yield
    except RuntimeError as error:
        cause = "" if "onnection" in str(error) else f" ({str(error).splitlines()[0]})"
        raise Lost(
            f"another of the {_now.size} processes has ended{cause}, without a word: the system ends one where memory "
            "is full; the same command goes on from here"
        ) from error


def gather(mine: T) -> list[T]:
    """What each process has, in their order: anything that can be pickled, with tensors on the CPU."""
    if _now.size == 1:
        return [mine]
    import torch.distributed as dist

    found: list[Any] = [None] * _now.size
    with _heard():
        dist.all_gather_object(found, mine)
    return found


def of_first(make: Callable[[], T]) -> T:
    """What the first process makes, for all; the others make nothing."""
    if _now.size == 1:
        return make()
    import torch.distributed as dist

    told: list[Any] = [make() if first() else None]
    with _heard():
        dist.broadcast_object_list(told, 0)
    return told[0]


@contextmanager
def in_turn() -> Iterator[None]:
    """What may download or unpack: done on each machine by one process, then by the others, who find it there."""
    if _now.local:
        gather(None)
    yield
    if not _now.local:
        gather(None)


def total(tensors: Sequence["Tensor"]) -> "list[Tensor]":
    """The sums of tensors over all processes, equal to the last bit in all of them."""
    if _now.size == 1 or not tensors:
        return list(tensors)
    import torch
    import torch.distributed as dist

    flat = torch.cat([x.detach().reshape(-1) for x in tensors])
    with _heard():
        dist.all_reduce(flat)
    parts = flat.split([x.numel() for x in tensors])
    return [part.view(x.shape).to(x.dtype) for part, x in zip(parts, tensors, strict=True)]
