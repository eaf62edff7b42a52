"""Runs that are killed in the middle and go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import vlprompt

COMMAND = Path(sys.executable).parent / "vlprompt"
METHOD = """
import torch
from vlprompt.methods import CoOp

class Dropped(CoOp):  # its steps draw random numbers, so that a resume must bring their state back
    def prepare(self, names, fixed):
        text = super().prepare(names, fixed)
        return torch.nn.functional.dropout(text, 0.1, self.training)
"""
SETTINGS = [
    "run",
    "dropped:Dropped",
    "digits",
    "--backbone",
    "glyph/random",
    "--shots",
    "4",
    "--seed",
    "1",
    "--save-every",
    "0.05",
]


def start(folder, *more):
    home = folder.with_name(folder.name + "-code")
    home.mkdir(exist_ok=True)
    (home / "dropped.py").write_text(METHOD)
    command, environment = [COMMAND, *SETTINGS, *more, "--out", folder], {**os.environ, "PYTHONPATH": str(home)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def outcome(root):
    [folder] = root.iterdir()
    told = json.loads((folder / "result.json").read_text())
    state = (folder / "prompt.safetensors").read_bytes()
    return state, told["scores"], told["summary"], (folder / "steps.jsonl").read_text()


def killed_until_done(root, moments, *more):
    """Give the command, kill -9 it once training goes, again and again; then let it end.

    Gives how often it was killed at work.
    """
    killed = 0
    for wait in moments:
        process, began, limit = start(root, *more), time.time(), time.monotonic() + 60
        while (
            process.poll() is None and time.monotonic() < limit
        ):  # not before this process has saved something to lose
            if any(f.stat().st_mtime > began for f in root.glob("*/last.safetensors")):
                break
            time.sleep(0.005)
        time.sleep(wait)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    process = start(root, *more)
    assert process.wait(300) == 0, process.stdout.read()
    return killed


# going on


class Stop(Exception):
    pass


def interrupted(make, task, train, folder, moments):
    """Stop at each of these calls of `on_event`, counted anew; then let it end."""
    for moment in [*moments, None]:
        count = 0

        def watch(*told, moment=moment):
            nonlocal count
            count += 1
            if moment is not None and count > moment:
                raise Stop

        try:
            return vlprompt.run(make(), task, train, folder, save_every=0, on_event=watch)
        except Stop:
            pass
    raise AssertionError("the last one ends")


UNLIKE = (
    "seconds",
    "peak_memory_mb",
    "feature_cache_misses",
    "feature_cache_hits",
)  # in which runs that were stopped differ


def same_but_for_time(a, b):
    told = [json.loads((f / "result.json").read_text()) for f in (a, b)]
    for one in told:
        one["cost"] = {k: v for k, v in one["cost"].items() if k not in UNLIKE}
        one["stages"] = [{k: v for k, v in stage.items() if k != "seconds"} for stage in one["stages"]]
    assert told[0] == told[1]
    for name in ("prompt.safetensors", "steps.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
