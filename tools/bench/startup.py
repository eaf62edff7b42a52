"""tools/bench startup: from the command to the first step, in fresh processes, whose files were read before.

A run of CoOp on the embedded CLIP, `vlprompt run coop digits --shots 1 train.epochs=1`, which takes one step. The first
step counts as taken when its line and the state after it stand in the run's folder, so the time is never too short. It
takes turns with `import torch` alone, which every program on torch waits for; "above" is the median of the differences.
The embedded CLIP imports no open_clip, timm or transformers, no scikit-learn and no torch._dynamo. Seconds are those on
the clock; beside them those of the processor, which other programs disturb less.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.rows import make_number_column

RUN, HELP = "vlprompt run, to the first step", "vlprompt --help"
CASES = {RUN: "", HELP: ""}
SHORT = CASES
TARGETS = {RUN: ("above <= 1.5",), HELP: ("seconds <= 0.5",)}
ROUNDS = dict.fromkeys(CASES, 5)
SINGLE_THREADED = True
COLUMNS = {
    "s": make_number_column("seconds:.2f"),
    "least": make_number_column("min:.2f"),
    "most": make_number_column("max:.2f"),
    "processor s": make_number_column("processor:.2f"),
    "import torch s": make_number_column("library:.2f"),
    "its processor s": make_number_column("library_processor:.2f"),
    "above s": make_number_column("above:.2f"),
    "above, processor s": make_number_column("above_processor:.2f"),
}
COMMAND = str(Path(sys.executable).with_name("vlprompt"))


def time_command(command, is_done=None):
    """Measure wall-clock and processor seconds of a command to its end, or until `is_done()`, which ends it."""
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        ended = seconds = 0.0
        if is_done is not None:
            while not is_done() and not ended:
                ended, status, used = os.wait4(process.pid, os.WNOHANG)
                time.sleep(0.005)
            seconds = time.perf_counter() - began
            if not ended:
                process.kill()
        if not ended:
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if (process.returncode and not seconds) or (ended and not is_done()):
            said.seek(0)
            raise SystemExit(f"{' '.join(command[:3])} ended with {process.returncode}: {said.read()[-500:]}")
    return seconds or time.perf_counter() - began, used.ru_utime + used.ru_stime


def time_first_step(device):
    with tempfile.TemporaryDirectory() as folder:
        command = [COMMAND, "run", "coop", "digits", "--shots", "1", "train.epochs=1", "--device", device]
        return time_command(
            [*command, "--out", folder],
            lambda: any(path.stat().st_size for path in Path(folder).glob("*/steps.jsonl")),
        )


def measure_row(case, device, rounds):
    if case == HELP:
        work = lambda: time_command([COMMAND, "--help"])  # noqa: E731
    else:
        work = lambda: time_first_step(device)  # noqa: E731
    library = lambda: time_command([sys.executable, "-c", "import torch"]) if case == RUN else (0.0, 0.0)  # noqa: E731
    work(), library()  # so that the files have been read
    mine, theirs = zip(*((work(), library()) for _ in range(rounds)), strict=True)
    seconds, processor = zip(*mine, strict=True)
    found = {"seconds": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    found["processor"] = statistics.median(processor)
    if case == RUN:
        clock, used = zip(*theirs, strict=True)
        found |= {"library": statistics.median(clock), "library_processor": statistics.median(used)}
        for name, both in (("above", (seconds, clock)), ("above_processor", (processor, used))):
            found[name] = statistics.median(a - b for a, b in zip(*both, strict=True))
    return found
