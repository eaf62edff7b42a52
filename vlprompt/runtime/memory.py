"""Memory of the process or the GPU: what is used, what is free, the peak, and the tensors of a block of code."""

import ctypes
import math
import sys
import time
import weakref
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlprompt.runtime import distributed
from vlprompt.runtime.settings import SETTINGS

PROC_STATUS = Path("/proc/self/status")


def set_limit(gigabytes: float) -> None:
    """Limit what the process may take in all (2**30 bytes), where that is less than what there is."""
    if not gigabytes > 0:
        raise ValueError(f"--memory-limit: expected a number of GB above 0, got {gigabytes}. Set --memory-limit 3.")
    SETTINGS.memory_limit_mb = gigabytes * 1024


def has_limit() -> bool:
    return SETTINGS.memory_limit_mb < math.inf


def reset_peak(device: torch.device) -> None:
    """Start to measure the peak anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif PROC_STATUS.exists():
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # not permitted in some containers; then the peak is that of the process
            return


def measure_peak(device: torch.device) -> float:
    """Return the peak of a GPU's tensors, else of the process (MB of 2**20 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if PROC_STATUS.exists():
        return _read_megabytes(PROC_STATUS, "VmHWM")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def measure_used(device: torch.device) -> float:
    """Return what the process (or on a GPU its tensors) takes now (MB)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return _read_megabytes(PROC_STATUS, "VmRSS") if PROC_STATUS.exists() else measure_peak(device)


def measure_available(device: torch.device) -> float:
    """Return what may be taken besides (MB); infinite where neither the system nor a limit says.

    Processes of one machine share what it has free, while each has a GPU of its own.
    """
    n_sharing = 1 if device.type == "cuda" else distributed.get_local_size()
    free = _measure_system_free(device) / n_sharing
    return max(0.0, min(free, SETTINGS.memory_limit_mb - measure_used(device)))


def _measure_system_free(device: torch.device) -> float:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + cached) / 2**20
    bounds = [_read_megabytes(Path("/proc/meminfo"), "MemAvailable")] if Path("/proc/meminfo").exists() else []
    maximum, current = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))  # of a container
    if maximum.exists() and (limit := maximum.read_text().strip()).isdigit():
        bounds.append((int(limit) - int(current.read_text())) / 2**20)
    return min(bounds, default=math.inf)


def _read_megabytes(file: Path, key: str) -> float:
    """Read a line such as "VmHWM:  123 kB"."""
    return int(next(line for line in file.read_text().splitlines() if line.startswith(key)).split()[1]) / 2**10


@lru_cache
def return_freed_memory() -> None:
    """From now on return the memory of freed tensors of 1 MB or more to the system, where glibc would reuse it.

    The gaps that layers leave between each other's tensors otherwise add up to several times the live tensors.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(-3, 2**20)  # M_MMAP_THRESHOLD


class TensorMemoryTracker(TorchDispatchMode):
    """Count the bytes of the tensors made within the with-block: `current_bytes` now, `peak_bytes` at once.

    `own_seconds` is what counting takes of the time of the block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current_bytes = self.peak_bytes = 0
        self.own_seconds = 0.0
        self._sizes = dict[int, int]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: else torch imports its compiler for the first tensor, which takes a second and 100 MB."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.perf_counter()
        inputs = {s._cdata for s in _iter_storages((args, kwargs))}
        called = time.perf_counter()
        output = func(*args, **(kwargs or {}))
        returned = time.perf_counter()
        for storage in _iter_storages(output):
            if storage._cdata not in inputs and storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = size = storage.nbytes()
                self.current_bytes += size
                self.peak_bytes = max(self.peak_bytes, self.current_bytes)
                weakref.finalize(storage, self._on_freed, storage._cdata)
        self.own_seconds += called - began + time.perf_counter() - returned
        return output

    def _on_freed(self, storage: int) -> None:
        self.current_bytes -= self._sizes.pop(storage, 0)


def _iter_storages(tree: object) -> Iterator[Any]:
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
