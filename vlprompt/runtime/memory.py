"""Peak memory of a run: of the device where it has its own, else of the process since the run began."""

import ctypes
import math
import sys
import weakref
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HELD = Path("/proc/self/status")
_most = {"mb": math.inf}


def limit(gigabytes: float) -> None:
    """How much the process may take in all, GB (2**30 bytes), where that is less than there is; ValueError for none."""
    if not gigabytes > 0:
        raise ValueError(f"--memory is a number of GB above 0, such as 3; got {gigabytes}")
    _most["mb"] = gigabytes * 1024


def limited() -> bool:
    return _most["mb"] < math.inf


def forget(device: torch.device) -> None:
    """Start to measure anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif HELD.exists():
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # not permitted in some containers; then the peak is that of the process
            return


def peak(device: torch.device) -> float:
    """Megabytes (2**20 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if HELD.exists():
        return _line(HELD, "VmHWM")
    import resource

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / 2**20 if sys.platform == "darwin" else held / 2**10


def held(device: torch.device) -> float:
    """Megabytes that the process (or on a GPU its tensors) takes now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return _line(HELD, "VmRSS") if HELD.exists() else peak(device)


def free(device: torch.device) -> float:
    """Megabytes that are to be had besides; infinite where neither the system nor a limit tells."""
    return max(0.0, min(_there(device), _most["mb"] - held(device)))


def _there(device: torch.device) -> float:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + cached) / 2**20
    found = [_line(Path("/proc/meminfo"), "MemAvailable")] if Path("/proc/meminfo").exists() else []
    most, now = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))  # of a container
    if most.exists() and (limit := most.read_text().strip()).isdigit():
        found.append((int(limit) - int(now.read_text())) / 2**20)
    return min(found, default=math.inf)


def _line(file: Path, key: str) -> float:
    """Megabytes in a file of lines such as "VmHWM:  123 kB"."""
    return int(next(line for line in file.read_text().splitlines() if line.startswith(key)).split()[1]) / 2**10


@lru_cache
def give_back() -> None:
    """From now on a tensor of a MB or more returns to the system when it goes, where glibc would keep the room.

    What layers leave between each other's tensors otherwise adds up to several times what is held at once.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(-3, 2**20)  # M_MMAP_THRESHOLD


class Tracked(TorchDispatchMode):
    """What the tensors made while this lasts take: `held` bytes now, `most` at once; those from before don't count."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0
        self._known = dict[int, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {s._cdata for s in _storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if storage._cdata not in before and storage._cdata not in self._known:
                self._known[storage._cdata] = size = storage.nbytes()
                self.held += size
                self.most = max(self.most, self.held)
                weakref.finalize(storage, self._gone, storage._cdata)
        return made

    def _gone(self, storage: int) -> None:
        self.held -= self._known.pop(storage, 0)


def _storages(tree: Any) -> Iterator[Any]:
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
