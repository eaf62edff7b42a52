"""Measurements in a fresh process: time two implementations against each other, or find a peak of memory.

Times are of the processor on a CPU, which other programs disturb less, divided by the threads. The forms take turns,
so that a ratio is of times that lie beside each other.
"""

import ctypes
import gc
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

VARIANTS = ("fast", "reference", "tower_only", "cold")
PARENT_PID = os.getppid()


def time_call(call, device):
    """Return the seconds of a piece of work."""
    if os.getppid() != PARENT_PID:  # the tool was killed: an orphan would only disturb the next one
        sys.exit("the process that asked for this is gone")
    now = time.perf_counter if device == "cuda" else time.process_time
    began = now()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (now() - began) / (1 if device == "cuda" else torch.get_num_threads())


def measure_matmul_rate(device):
    """Measure the floating-point operations per second of one large float32 matrix product."""
    size = 1024 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device)
    time_call(lambda: a @ a, device)
    return 2 * size**3 / statistics.median(time_call(lambda: a @ a, device) for _ in range(10))


class FlopCounter(TorchDispatchMode):
    """Count floating-point operations by torch's formulas; torch's own counter misses some backward passes."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found, formula = func(*args, **(kwargs or {})), flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=found)
        return found


def count_flops(call):
    """Return the result of a piece of work and the floating-point operations of its matrix products."""
    with FlopCounter() as counter:
        found = call()
    return found, counter.flops


def compare_rounds(reference, fast):
    """Return the median seconds of two forms that took turns, and their ratio with its range over rounds."""
    ratios = [a / b for a, b in zip(reference, fast, strict=True)]
    found = {"reference": statistics.median(reference), "fast": statistics.median(fast)}
    return found | {"ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def measure_benchmark(benchmark, device, rounds):
    """Measure a row: median seconds, their ratio with its range over rounds, operations, matrix speed, difference."""
    difference, both = count_flops(benchmark.measure_difference)  # each form once
    _, flops = count_flops(lambda: benchmark.run_variant("fast"))
    for _ in range(2 if device == "cuda" else 0):  # a pass that comes again is recorded, which is not what is timed
        benchmark.run_variant("fast")
    forms = [form for form in VARIANTS if hasattr(benchmark, form)]
    times, rates = {form: [] for form in forms}, []
    for _ in range(rounds):
        rates.append(measure_matmul_rate(device))
        for form in forms:
            often = getattr(benchmark, "n_repeats", 3) if form in ("fast", "tower_only") else 1
            work = lambda form=form: benchmark.run_variant(form)  # noqa: E731
            times[form].append(statistics.median(time_call(work, device) for _ in range(often)))
    found = {form: statistics.median(t) for form, t in times.items()} | compare_rounds(
        times["reference"], times["fast"]
    )
    rate = statistics.median(rates)
    found |= {"flops": flops, "matmul_rate": rate, "fraction_of_matmul_rate": flops / found["fast"] / rate}
    found["difference"] = difference
    if "tower_only" in found:
        found["limit_share"] = found["tower_only"] / found["fast"]
    return found | ({"flop_ratio": both / flops - 1} if flops else {})


def measure_peak_memory(call, device):
    """Measure peak memory above that of the process before, in MB (2**20 bytes); once per process."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # what is free but still held would hide a part of the peak
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of making the model

    def held(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])

    before = held("VmRSS")
    call()
    return (held("VmHWM") - before) / 2**10
