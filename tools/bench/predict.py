"""tools/bench predict: many small images, and the memory of the process that predicts them.

`vlprompt predict RUN INPUT --out rows.jsonl` on 32x32 PNGs, in files or in tar shards of 10,000, by a prompt of CoOp on
the embedded CLIP, which was learned before. The rate counts from the first 1,000 rows, so that the start is left out;
processor ms are those of one image, which other programs on the machine disturb less. MB are the resident memory when
so many rows were written.
"""

import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from bench.rows import make_number_column

IMAGES_PER_SHARD = 10_000
CASES = {  # name -> number of images, and whether they lie in shards
    "100,000 files": (100_000, False),
    "100,000 images in 10 shards": (100_000, True),
    "10,000 files": (10_000, False),
}
ROUNDS = dict.fromkeys(CASES, 1)
POINTS = (1_000, 10_000, 50_000, 100_000)
COLUMNS = {
    "images/s": make_number_column("rate:.0f"),
    "processor ms": make_number_column("processor:.2f"),
    **{f"MB at {n:,}": make_number_column(f"mb_{n}:.0f") for n in POINTS},
}
COMMAND = str(Path(sys.executable).with_name("vlprompt"))
LEARN = "run", "coop", "digits", "--shots", "4", "--seed", "1", "train.epochs=5", "--out", "runs"


def write_images(folder, n, in_shards):
    """Write digits with noise as PNGs; return the words that name them."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits, random, shard = load_digits().images, np.random.default_rng(0), None
    (folder / "images").mkdir()
    for i in range(n):
        array = np.kron(digits[i % len(digits)] * 15, np.ones((4, 4))) + random.integers(0, 15, (32, 32))
        content = io.BytesIO()
        Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(content, "PNG", compress_level=1)
        if not in_shards:
            part = folder / "images" / f"{i // IMAGES_PER_SHARD:04}"
            part.mkdir(exist_ok=True)
            (part / f"{i:06}.png").write_bytes(content.getvalue())
            continue
        if i % IMAGES_PER_SHARD == 0:
            shard = tarfile.open(folder / f"images/{i // IMAGES_PER_SHARD:04}.tar", "w")  # noqa: SIM115
        member = tarfile.TarInfo(f"{i:06}.png")
        member.size = content.tell()
        content.seek(0)
        shard.addfile(member, content)
        if (i + 1) % IMAGES_PER_SHARD == 0:
            shard.close()
    return [f"images/{{0000..{n // IMAGES_PER_SHARD - 1:04}}}.tar"] if in_shards else ["images"]


def read_resident_mb(process_id):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process_id}/status").read_text())[1]) / 2**10


def watch(process, partial):
    """Return {rows: (seconds, MB)} at the points, until the process ends."""
    found, n_rows, position = {}, 0, 0
    while process.poll() is None:
        time.sleep(0.05)
        try:
            with partial.open("rb") as file:
                file.seek(position)
                content = file.read()
            resident = read_resident_mb(process.pid)
        except (OSError, TypeError):  # not begun, or just ended
            continue
        position, n_rows = position + len(content), n_rows + content.count(b"\n")
        for point in POINTS:
            if n_rows >= 0.99 * point:  # the last rows are renamed with the file
                found.setdefault(point, (n_rows, time.perf_counter(), resident))
    return found


def measure_row(case, device, rounds):
    n, in_shards = CASES[case]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([COMMAND, *LEARN], cwd=folder, check=True, capture_output=True)
        (run,) = (folder / "runs").iterdir()
        words = write_images(folder, n, in_shards)
        before = os.times()
        command = [COMMAND, "predict", str(run), *words, "--out", "rows.jsonl", "--device", device]
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
        found = watch(process, folder / "rows.jsonl.partial")
        after = os.times()
        if process.returncode:
            raise SystemExit(f"predict ended with {process.returncode}")
        n_rows = sum(1 for _ in (folder / "rows.jsonl").open("rb"))
        if n_rows != n:
            raise SystemExit(f"predict wrote {n_rows} rows of {n}")
    (first, began, _), (last, ended, _) = found[POINTS[0]], found[max(found)]
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    memory = {f"mb_{point}": resident for point, (_, _, resident) in found.items()}
    return {"rate": (last - first) / (ended - began), "processor": 1000 * seconds / n, **memory}
