"""tools/bench server: requests a second of `vlprompt serve`, with 1, 8 and 64 clients.

A prompt of CoOp on the embedded CLIP, which is learned first, in a process of its own. Each client is a connection that
sends one image (a digit of 8 x 8 pixels, enlarged to 64 x 64 as PNG) after the other, and waits for each answer. No
image comes twice, so that none is answered from the feature cache. "one by one" is the same with --batch-size 1, and
"in eights" with requests of eight images. The clients run in one process, on the same cores as the server.

requests, images: a second. p50, p95: milliseconds from the request to its whole answer. errors: answers of another
status than 200. a batch: images that the model answered at once, in the mean. MB: the memory of the server's process
(2**20 bytes) after the first second, and at the end. load: the load average of the machine before the row. others:
processor cores that other programs took while the row was measured; below the table is what that means.
"""

import asyncio
import contextlib
import io
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.rows import make_number_column

# name -> (clients, images a request, options of the server)
CASES = {
    "1 client": (1, 1, []),
    "8 clients": (8, 1, []),
    "64 clients": (64, 1, []),
    "1 client, one by one": (1, 1, ["--batch-size", "1"]),
    "8 clients, one by one": (8, 1, ["--batch-size", "1"]),
    "64 clients, one by one": (64, 1, ["--batch-size", "1"]),
    "8 clients, in eights": (8, 8, []),
}
SHORT = {"8 clients": CASES["8 clients"]}
ROUNDS = dict.fromkeys(CASES, 10)  # seconds
COLUMNS = {
    "requests": make_number_column("requests:.0f"),
    "images": make_number_column("images:.0f"),
    "p50 ms": make_number_column("p50:.1f"),
    "p95 ms": make_number_column("p95:.1f"),
    "errors": make_number_column("errors"),
    "a batch": make_number_column("batch:.1f"),
    "MB after 1 s": make_number_column("mb_before:.0f"),
    "MB at the end": make_number_column("mb_after:.0f"),
    "load": make_number_column("load:.1f"),
    "others": make_number_column("others:.1f"),
}
SETTING = "each row with a server of its own, the clients in one process beside it"
COMMAND = str(Path(sys.executable).with_name("vlprompt"))
WARM_UP_SECONDS = 1.0
MAX_OTHER_CORES = 0.2  # with more the rates are not those of the machine
BOUNDARY = b"vlprompt-bench"


def draw_digits():
    """Return digits as PNG files."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    pngs = []
    for pixels in load_digits().images[:200]:
        buffer = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).resize((64, 64)).save(buffer, "PNG")
        pngs.append(buffer.getvalue())
    return pngs


def make_request(images):
    """Return the bytes of a request with these images."""
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n%b\r\n' % (BOUNDARY, image)
        for image in images
    ]
    body = b"".join([*parts, b"--%b--\r\n" % BOUNDARY])
    head = (
        b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=%b\r\n"
        b"Content-Length: %d\r\n\r\n"
    )
    return head % (BOUNDARY, len(body)) + body


async def exchange(connection, request):
    """Send a request and read its answer; return the status and the body."""
    reader, writer = connection
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1]))
    return int(head.split(b" ", 2)[1]), body


async def send_requests(port, clients, n_images, seconds, process_id):
    """Send requests for some seconds; return (seconds, status, end) of each, and the memory after the first second."""
    pngs, numbers, results, end = draw_digits(), itertools.count(), [], time.perf_counter() + seconds
    begin = time.perf_counter()

    async def send_one_after_another():
        connection = await asyncio.open_connection("127.0.0.1", port)
        while (since := time.perf_counter()) < end:
            # bytes behind the end of a PNG make another file of the same picture
            images = [pngs[n % len(pngs)] + b"%d" % n for n in itertools.islice(numbers, n_images)]
            status, _ = await exchange(connection, make_request(images))
            results.append((time.perf_counter() - since, status, time.perf_counter()))
        connection[1].close()

    async def measure_memory():
        await asyncio.sleep(WARM_UP_SECONDS)
        return read_memory(process_id)

    *_, memory = await asyncio.gather(*(send_one_after_another() for _ in range(clients)), measure_memory())
    return [r for r in results if r[2] - begin > WARM_UP_SECONDS], memory, time.perf_counter() - begin


async def read_metrics(port):
    connection = await asyncio.open_connection("127.0.0.1", port)
    _, body = await exchange(connection, b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    connection[1].close()
    return dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if line[0] != "#")


def read_memory(process_id):
    """Return the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def read_busy_seconds(process_id=None):
    """Return the processor seconds that a process has taken, or all of the machine."""
    if process_id is None:
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
        ticks = user + nice + system + sum(interrupts)
    else:
        ticks = sum(map(int, Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


class OtherWork:
    """Processor cores that programs other than these processes take."""

    def __init__(self, process_ids):
        self.process_ids, self.began = process_ids, time.perf_counter()
        self.busy_seconds = self._measure()

    def read(self):
        return max(0.0, (self._measure() - self.busy_seconds) / (time.perf_counter() - self.began))

    def _measure(self):
        return read_busy_seconds() - sum(map(read_busy_seconds, self.process_ids))


@contextlib.contextmanager
def start_server(folder, options):
    """Yield the process of a server and its port; SystemExit where it does not end by itself with 0."""
    command = [COMMAND, "serve", str(folder), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        port = next((int(found[1]) for line in process.stderr if (found := re.search(r"http://.*:(\d+)", line))), None)
        if port is None:
            raise SystemExit(f"{' '.join(command[:3])} ended with {process.wait()}")
        yield process, port
        process.terminate()
        if process.wait(60):
            raise SystemExit(f"the server ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()


def measure_row(case, device, rounds):
    (clients, n_images, options), load = CASES[case], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as root:
        command = [COMMAND, "run", "coop", "digits", "--shots", "1", "train.epochs=1", "--out", root]
        subprocess.run(command, check=True, capture_output=True)
        [folder] = Path(root).iterdir()
        with start_server(folder, [*options, "--device", device]) as (process, port):
            other_work = OtherWork((os.getpid(), process.pid))
            results, before, seconds = asyncio.run(send_requests(port, clients, n_images, rounds, process.pid))
            others = other_work.read()
            metrics, after = asyncio.run(read_metrics(port)), read_memory(process.pid)
    times = sorted(seconds for seconds, _, _ in results)
    rate = len(results) / (seconds - WARM_UP_SECONDS)
    return {
        "requests": rate,
        "images": rate * n_images,
        "p50": 1000 * statistics.median(times),
        "p95": 1000 * times[int(0.95 * len(times))],
        "errors": sum(status != 200 for _, status, _ in results),
        "batch": float(metrics["vlprompt_batch_images_sum"]) / float(metrics["vlprompt_batch_images_count"]),
        "mb_before": before,
        "mb_after": after,
        "load": load,
        "others": others,
    }


def render_details(rows, out):
    """Return a line about the machine: its load average, and whether other programs disturbed the rows."""
    if not (rows := [row for row in rows if "load" in row]):
        return []
    loads, others = ([row[key] for row in rows] for key in ("load", "others"))
    few = max(others) < MAX_OTHER_CORES
    return [
        f"Load average of the machine before each row: {min(loads):.1f} to {max(loads):.1f}. Other programs took "
        f"{min(others):.1f} to {max(others):.1f} of its {os.cpu_count()} cores while a row was measured"
        + ("." if few else ": read the ratios of rows that were disturbed alike, not the rates.")
    ]
