"""Runs that are killed in the middle and go on."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

from forks import HANG, Fork

import vlprompt
from vlprompt.cli.app import main

COMMAND = Path(sys.executable).parent / "vlprompt"
SAVE_SECONDS = 0.05
METHOD = """
import os, signal, time
import torch
from vlprompt.methods import CoOp

class Dropped(CoOp):  # its steps draw random numbers, so that a resume must bring their state back
    step = None

    def begin_lesson(self, lesson, generator):
        self.lesson_index = lesson.index
        super().begin_lesson(lesson, generator)

    def prepare(self, names, fixed):
        text = super().prepare(names, fixed)
        return torch.nn.functional.dropout(text, 0.1, self.training)

    def reach(self, place):  # KILL_AT=2/30/loss: in lesson 2 at step 30, when its loss is computed
        lesson, step, wanted = os.environ.get("KILL_AT", "//").split("/")
        if self.step is None or not step or self.lesson_index != int(lesson):
            return
        # the state after such a step is saved, so that the next one is lost, or killed while it is saved
        if place == "loss" and self.step == int(step) - 2 * (wanted != "state"):
            time.sleep(2 * SAVE_SECONDS)
        if place == wanted and self.step == int(step):
            if os.environ.get("HOLDS"):
                print("holding", flush=True)
                signal.pause()
            os.kill(os.getpid(), signal.SIGKILL)

    def loss_terms(self, batch, fixed):
        self.step = batch.step
        self.reach("loss")
        return super().loss_terms(batch, fixed)

    def end_step(self, step, steps):
        self.reach("end")

    def state_dict(self, *arguments, **options):
        self.reach("state")
        return super().state_dict(*arguments, **options)
""".replace("SAVE_SECONDS", str(SAVE_SECONDS))
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
    str(SAVE_SECONDS),
]


def start(folder, *more, is_fresh=False, **environment):
    """Begin the command in a fork, or as a user begins it; KILL_AT names when it kills itself, or HOLDS there."""
    home = folder.with_name(folder.name + "-code")
    home.mkdir(exist_ok=True)
    (home / "dropped.py").write_text(METHOD)
    folders = [str(home), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders), **environment}
    words = [*map(str, [*SETTINGS, *more, "--out", folder])]
    if not is_fresh:
        return Fork(_give_beside, home, words, env=variables)
    return subprocess.Popen(
        [COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables
    )


def _give_beside(home, words):
    sys.path.insert(0, str(home))
    main(words)


def outcome(root):
    [folder] = root.iterdir()
    told = json.loads((folder / "result.json").read_text())
    state = (folder / "prompt.safetensors").read_bytes()
    return state, told["scores"], told["summary"], (folder / "steps.jsonl").read_text()


def end(process):
    """Wait for its end; gives its exit status and all that it has said."""
    said = process.communicate(timeout=HANG)[0]
    return process.returncode, said


def killed_until_done(root, moments, *more, is_fresh=False):
    """Give the command, have it killed at each of these moments, one after another; then let it end.

    A moment is as in KILL_AT, later than the one before by three steps at least: then the run goes on before it. The
    processes are forks; is_fresh: but the first, which is one that a user begins.
    """
    for k, moment in enumerate(moments):
        status, said = end(start(root, *more, is_fresh=is_fresh and not k, KILL_AT=moment))
        assert status == -signal.SIGKILL, (moment, said)
    status, said = end(start(root, *more))
    assert status == 0, said


# going on


def _run_until(folder, condition, words):
    """Run a script, killed as soon as a folder is in some state: at the next file that it opens or renames."""
    is_looking = False

    def watch(event, arguments):
        nonlocal is_looking
        if event in ("open", "os.rename") and not is_looking:
            is_looking = True
            if folder.exists() and eval(condition, {"folder": folder}):
                os.kill(os.getpid(), signal.SIGKILL)
            is_looking = False

    sys.addaudithook(watch)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


def killed_when(folder, condition, *words, **where):
    """Run a Python script with its words in a fork until the condition on `folder` holds, and have it killed then."""
    fork = Fork(_run_until, folder, condition, [*map(str, words)], **where)
    said = fork.communicate()[0]
    assert fork.returncode == -signal.SIGKILL, said


class Stop(Exception):
    pass


def interrupted(make, task, train, folder, moments, whole):
    """Stop at each of these calls of `on_event`, counted anew; then let it end, with fewer calls than a whole run."""
    for moment in [*moments, None]:
        count = 0

        def watch(*told, moment=moment):
            nonlocal count
            count += 1
            if moment is not None and count > moment:
                raise Stop

        try:
            result = vlprompt.run(make(), task, train, folder, save_every=0, on_event=watch)
        except Stop:
            continue
        assert count < whole, "it went on, and did not begin anew"
        return result
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
        del one["checksum"]  # of all, with the seconds
        one["cost"] = {k: v for k, v in one["cost"].items() if k not in UNLIKE}
        one["stages"] = [{k: v for k, v in stage.items() if k != "seconds"} for stage in one["stages"]]
    assert told[0] == told[1]
    for name in ("prompt.safetensors", "steps.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
