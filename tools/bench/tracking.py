"""tools/bench tracking: a run that is copied to a tracker against one that is not.

CoOp on 4 images of each of the ten handwritten digits, 200 steps on the embedded CLIP, features cached before. Seconds
are of the processor, of all threads of the process, from the first step to the last. hearing: the share of these steps'
wall-clock time in which the training waits for the tracker. begin and end, of the wall clock, once a run: the tracker
opens the run; it gets the result, pictures and files. Stores are local (Weights & Biases in its offline mode).
"""

import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.rows import make_number_column
from vlprompt.backbones import load_backbone
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.events import StepDone
from vlprompt.experiments.runner import run
from vlprompt.experiments.trackers.choice import TRACKERS
from vlprompt.experiments.trackers.tracker import TrackedRun
from vlprompt.experiments.trackers.tracking import follow_run
from vlprompt.methods import CoOp
from vlprompt.tasks import FewShot

N_STEPS, N_WARM_STEPS = 200, 5
CASES = {name: (name,) for name in TRACKERS}  # name -> trackers
SETTING = f"{N_STEPS} steps of CoOp on the embedded CLIP"
COLUMNS = {
    "without s": make_number_column("plain:.2f"),
    "tracked s": make_number_column("tracked:.2f"),
    "ratio": make_number_column("ratio:.3f"),
    "least": make_number_column("min:.3f"),
    "largest": make_number_column("max:.3f"),
    "hearing %": make_number_column("hearing:.1f"),
    "begin s": make_number_column("begin:.2f"),
    "end s": make_number_column("end:.2f"),
}


def measure_row(case, device, rounds):
    clip, task = load_backbone("glyph", device), FewShot("digits", shots=4)
    plain, tracked = [], []
    with TemporaryDirectory() as name:
        os.environ |= {"WANDB_MODE": "offline", "TRACKIO_DIR": f"{name}/trackio"}
        for i in range(rounds + 1):  # the first has imports and files of the feature cache
            config = TrainConfig(iterations=N_STEPS if i else N_WARM_STEPS)
            plain.append(measure_run(CoOp(clip), task, config, Path(name) / f"plain-{i}", ()))
            tracked.append(measure_run(CoOp(clip), task, config, Path(name) / f"tracked-{i}", CASES[case]))
    ratios = [b["steps"] / a["steps"] for a, b in zip(plain[1:], tracked[1:], strict=True)]
    return {
        "plain": statistics.median(one["steps"] for one in plain[1:]),
        "tracked": statistics.median(one["steps"] for one in tracked[1:]),
        "ratio": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        **{name: statistics.median(one[name] for one in tracked[1:]) for name in ("hearing", "begin", "end")},
    }


def measure_run(method, task, config, folder, trackers):
    """Make a run; returns the seconds of its steps, the share of hearing, and seconds to begin and end tracking."""
    heard, clocks, now = [], [], time.perf_counter

    def hear(event):
        start = now()
        listener.hear(event)
        if isinstance(event, StepDone):
            heard.append(now() - start)
            clocks.append((now(), time.process_time()))

    began = now()
    tracked = TrackedRun(folder.name, {"train": {"lr": config.lr}}, folder, folder, folder.parent)
    with follow_run(trackers, tracked) as listener:
        opened = now()
        result = run(method, task, config, folder, on_event=hear)
        ended = now()
        listener.finish(result)
    (first, first_cpu), (last, last_cpu) = clocks[0], clocks[-1]
    return {
        "steps": last_cpu - first_cpu,
        "hearing": 100 * sum(heard[1:]) / (last - first),
        "begin": opened - began,
        "end": now() - ended,
    }
