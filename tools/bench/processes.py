"""tools/bench processes: a training step of several processes against one, each of one thread.

The step is what `fit` makes of a batch, the frozen image features given; ViT-B/16 size, random weights. Every process
encodes its share of the class texts, and gradients are summed. Seconds are of the processor, of the process that took
longest, and contain what it computes while it waits for the other. same: the largest relative difference of the prompt
after the steps.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from bench import text
from bench.measure import compare_rounds, time_call
from bench.rows import make_number_column
from vlprompt.core.batch import Batch, Split
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import TrainConfig
from vlprompt.methods import CoOp
from vlprompt.runtime import distributed

CASES = {  # name -> what a step is of
    "coop, 1000 classes": (CoOp, {"n_ctx": 16}, 1000, 32),
    "coop, 100 classes": (CoOp, {"n_ctx": 16}, 100, 32),
}
TARGETS = {"coop, 1000 classes": ("ratio >= 1.6",)}
ROUNDS = {"coop, 1000 classes": 2}
N_PROCESSES, LEARNING_RATE, ON_CPU_ALONE, SINGLE_THREADED = 2, 1e-3, True, True
SETTING = "processes of one thread each, gloo, on one machine"
COLUMNS = {
    "one process s": make_number_column("reference:.2f"),
    f"{N_PROCESSES} processes s": make_number_column("fast:.2f"),
    "ratio": make_number_column("ratio:.2f"),
    "least": make_number_column("min:.2f"),
    "largest": make_number_column("max:.2f"),
    "same": make_number_column("difference:.0e"),
}


def take_steps(case, device):
    """Return the seconds of the second step, and the prompt after it."""
    spec = CASES[case]
    setting = text.TextBenchmark(spec, device, torch.float32)
    loop = Loop(setting.method, Lesson(Split((), (), setting.names)), TrainConfig(batch_size=spec[-1]), 0)
    batch = Batch(setting.images, setting.labels, setting.names)
    loop.take_step(batch, LEARNING_RATE)  # what is kept from the first step is made once
    seconds = time_call(lambda: loop.take_step(batch, LEARNING_RATE), device)
    return seconds, setting.method.ctx.detach().flatten().tolist()


def run_together(case):
    """Return the longest seconds of several processes, and the prompt of the first."""
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--no-python"]
    worker = [sys.executable, Path(__file__).parent, "processes", "--case", case, "--worker"]
    done = subprocess.run(
        [*map(str, [*torchrun, "--nproc-per-node", N_PROCESSES, *worker])],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no word").splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def measure_share(case):
    """What one of several processes does: the first prints the longest seconds and the prompt."""
    with distributed.open_process_group("cpu"):
        seconds, prompt = take_steps(case, "cpu")
        longest = max(distributed.all_gather(seconds))
        if distributed.is_main_process():
            print(json.dumps([longest, prompt]))


def measure_row(case, device, rounds):
    if distributed.read_world_size() > 1:
        measure_share(case)
        sys.exit()
    slow, fast, differences = [], [], []
    for _ in range(rounds):
        seconds, prompt = take_steps(case, device)
        shared_seconds, shared_prompt = run_together(case)
        slow.append(seconds)
        fast.append(shared_seconds)
        a, b = torch.tensor(prompt), torch.tensor(shared_prompt)
        differences.append(float((a - b).abs().max() / a.abs().max()))
    return compare_rounds(slow, fast) | {
        "difference": max(differences),
    }
