"""Commands of sweeps in processes of their own, and what they leave."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlprompt.experiments.sweeps.owner import Owner

CODE = "from vlprompt.cli.app import main; main()"
FILES = "prompt.safetensors", "answers.safetensors", "steps.jsonl"
SECONDS_TO_WAIT = 480.0
METHOD = """
import os, time
from vlprompt.methods import CoOp

class Slow(CoOp):  # its steps take time on the clock, and none of a core
    def loss_terms(self, batch, fixed):
        time.sleep(float(os.environ.get("SECONDS_PER_STEP", "0")))
        return super().loss_terms(batch, fixed)
"""


def start_sweep(runs: Path, *words: object, log: Path | None = None, **variables: str) -> "subprocess.Popen[bytes]":
    """Give a command; what it prints goes to a file."""
    path = log or runs.with_name(f"{runs.name}.log")
    with path.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", CODE, "sweep", *map(str, words), "--out", str(runs)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def run_sweep_command(runs: Path, *words: object, **variables: str) -> str:
    """Give a command that is to end well; return what it printed."""
    path = runs.with_name(f"{runs.name}.log")
    path.unlink(missing_ok=True)
    assert start_sweep(runs, *words, **variables).wait(SECONDS_TO_WAIT) == 0, path.read_text()
    return path.read_text()


def wait_for(condition: Callable[[], Any], process: "subprocess.Popen[bytes] | None" = None) -> Any:
    """Wait until a condition holds, while a process lives; return what it gave."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not (value := condition()):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.05)
    return value


def list_running(runs: Path) -> dict[str, tuple[Owner, int]]:
    """Return who makes which run, and how many steps or tests are done, of those that have written so."""
    running = dict[str, tuple[Owner, int]]()
    for path in runs.glob(".sweep/claims/[!.]*/progress.json"):
        try:
            owner = Owner.parse(json.loads((path.parent / "owner.json").read_text()))
            running[path.parent.name] = owner, json.loads(path.read_text())["n_done"]
        except (OSError, ValueError):  # it has ended meanwhile
            continue
    return running


def read_runs(runs: Path) -> dict[str, tuple[Any, ...]]:
    """Return what is equal of two sweeps: scores, summary, and the bytes of what was learned."""
    found = {}
    for path in sorted(runs.glob("*/result.json")):
        result = json.loads(path.read_text())
        assert not (path.parent / "last.safetensors").exists()
        files = [(path.parent / name).read_bytes() for name in FILES if (path.parent / name).exists()]
        found[path.parent.name] = result["scores"], result["summary"], *files
    return found


def read_files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return the files of a run, and when they were written; not its lock."""
    paths = [path for path in folder.iterdir() if path.is_file() and path.name != ".lock"]
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def read_parent(pid: int) -> int:
    """Return the parent of a process; 0 for one that has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def read_variable(pid: int, name: str) -> str:
    """Return a variable of the environment with which a process began; "" for none."""
    pairs = [word.partition("=") for word in Path(f"/proc/{pid}/environ").read_text().split("\0")]
    return next((value for key, _, value in pairs if key == name), "")
