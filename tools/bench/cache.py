"""tools/bench cache: what a feature cache of up to a million kept features costs.

Random float32 features of width 512 are written by the cache's own path, as a tower's are that were computed; another
process opens the folder and reads. `open` is the first lookup, of a key that is not there: it finds the folder, opens
all files, compares the checksums of their indices and builds one index of them. `lookup` is of a feature on the disk
by the image tower's call, in batches of 32 at random, its checksum compared: (32, 512) come back, and the features stay
in memory. `plain read` reads as many features from random known places of the same files, each into a tensor that
stays, and stacks those of a batch; `bytes alone` is the system's read only. Files are in the system's page cache,
having just been written. `read all MB` is what the process then occupies besides the pages of the files, with a memory
cache bounded by 256 MB, when it has looked up every feature.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.rows import make_number_column
from vlprompt.backbones.cache.disk import CacheNamespace, DiskCache
from vlprompt.backbones.cache.memory import FeatureCache
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.images import Images, Preprocessing, persistent_key

WIDTH, MAX_MEMORY_BYTES, N_LOOKUPS = 512, 2**28, 20_000
BATCH_SIZE = 32
CASES = {f"{n:,} features": n for n in (1_000, 10_000, 100_000, 1_000_000)}
TARGETS = {"1,000,000 features": ("open_seconds <= 1", "read_mb <= 512")}
ROUNDS, SINGLE_THREADED, ON_CPU_ALONE = dict.fromkeys(CASES, 1), True, True
SETTING = "written by one process, read by another"
COLUMNS = {
    "on disk MB": make_number_column("disk_mb:.0f"),
    "files": make_number_column("files:d"),
    "written s": make_number_column("write_seconds:.1f"),
    "open s": make_number_column("open_seconds:.3f"),
    "lookup us": make_number_column("lookup_us:.1f"),
    "plain read us": make_number_column("read_us:.1f"),
    "ratio": make_number_column("ratio:.1f"),
    "bytes alone us": make_number_column("bytes_us:.1f"),
    "in memory us": make_number_column("memory_us:.2f"),
    "missing us": make_number_column("missing_us:.1f"),
    "read all MB": make_number_column("read_mb:.0f"),
}


def open_cache(folder):
    disk_cache = DiskCache(Path(folder), max_bytes=10**11)
    cache = FeatureCache(MAX_MEMORY_BYTES)
    cache.disk_namespace = CacheNamespace(
        disk_cache, {"tower": "random features"}, lambda: torch.arange(4.0), torch.device("cpu")
    )
    return cache


def write_features(folder, n):
    """Write n features, as after n images that were computed."""
    cache, generator = open_cache(folder), torch.Generator().manual_seed(0)
    for begin in range(0, n, 1000):
        rows = torch.randn(min(1000, n - begin), WIDTH, generator=generator)
        for i, row in enumerate(rows, begin):
            cache.add_computed(persistent_key("image", i), row.clone())
    cache.flush()


def measure_own_mb():
    """Return the MB of the process without the pages of files."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 2**10


def refuse(*_):
    raise RuntimeError("a feature was not found")


def open_tower(cache):
    """Return a tower that takes features from the cache and can't compute any."""
    tower = ImageTower(refuse, WIDTH, Preprocessing((1, 1)), "random features", torch.device("cpu"))
    tower.feature_cache = cache
    return tower


def make_batches(keys):
    return [Images(refuse, keys[begin : begin + BATCH_SIZE]) for begin in range(0, len(keys), BATCH_SIZE)]


def time_all(call, batches):
    """Return the microseconds of the processor per item of the batches."""
    began = time.process_time()
    for batch in batches:
        call(batch)
    return (time.process_time() - began) / sum(map(len, batches)) * 1e6


def time_plain_reads(files, n_reads, n_bytes):
    """Return the microseconds of reading n_bytes at a random place into a tensor that stays, and of the read alone."""
    draw, kept = random.Random(0), []
    opened = [(os.open(path, os.O_RDONLY), path.stat().st_size) for path in files]

    def draw_batches():
        places = [(file, draw.randrange(size - n_bytes)) for file, size in draw.choices(opened, k=n_reads)]
        return [places[begin : begin + BATCH_SIZE] for begin in range(0, n_reads, BATCH_SIZE)]

    def read_tensors(places):
        rows = (bytearray(os.pread(file, n_bytes, place)) for file, place in places)
        kept.append([torch.frombuffer(row, dtype=torch.float32) for row in rows])
        torch.stack(kept[-1])

    def read_bytes(places):
        for file, place in places:
            os.pread(file, n_bytes, place)

    microseconds = time_all(read_tensors, draw_batches()), time_all(read_bytes, draw_batches())
    for file, _ in opened:
        os.close(file)
    return microseconds


def measure_row(case, device, rounds):
    n, draw = CASES[case], random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        code = f"from bench.cache import write_features; write_features({folder!r}, {n})"
        root = Path(__file__).parents[1]
        paths = os.pathsep.join((str(root), str(root.parent), os.environ.get("PYTHONPATH", "")))
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, check=True)
        found = {"write_seconds": time.monotonic() - began}
        files = list(Path(folder).rglob("*.rows"))
        found |= {"files": len(files), "disk_mb": sum(path.stat().st_size for path in files) / 2**20}
        before, tower = measure_own_mb(), open_tower(open_cache(folder))
        began = time.process_time()
        assert not tower.feature_cache.get_many([persistent_key("none")])
        found["open_seconds"] = time.process_time() - began
        batches = make_batches([persistent_key("image", i) for i in draw.sample(range(n), min(n, N_LOOKUPS))])
        found["lookup_us"], found["memory_us"] = time_all(tower, batches), time_all(tower, batches)
        missing = make_batches([persistent_key("no image", i) for i in range(1024)])
        found["missing_us"] = time_all(lambda batch: tower.feature_cache.get_many(batch.keys), missing)
        found["read_us"], found["bytes_us"] = time_plain_reads(files, min(n, N_LOOKUPS), 4 * WIDTH)
        found["ratio"] = found["lookup_us"] / found["read_us"]
        for begin in range(0, n, 1000):
            keys = [persistent_key("image", i) for i in range(begin, begin + 1000)]
            assert len(tower.feature_cache.get_many(keys)) == len(keys)
        found["read_mb"] = measure_own_mb() - before
    return found
