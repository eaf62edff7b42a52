"""tools/bench memory: peaks of memory, each of one piece of work in a fresh process.

A training step is what `fit` makes of a batch, the frozen features given; its peak is above what the process held with
the model loaded. The models are of ViT-B/16 size with random weights. The whole run is `vlprompt run coop` on a folder
of 1000 classes with one small JPEG each to train and to test on, with two steps of 32 images and a test of all; its
peak is that of the whole process, libraries and model included.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench import text, vpt
from bench.measure import measure_peak_memory
from bench.rows import make_number_column
from vlprompt.core.batch import Batch, Split
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import TrainConfig
from vlprompt.methods import CoCoOp, CoOp

COOP_1000_CLASSES = CoOp, {"n_ctx": 16}, 1000, 32
WHOLE_RUN = "whole run, coop, 1000 classes"
CASES = {  # name -> what a step is of, and how it is made; or the form of a step of VPT
    "coop, 1000 classes": (COOP_1000_CLASSES, {}),
    "coop, 1000 classes, checkpointing": (COOP_1000_CLASSES, {"activation_checkpointing": True}),
    "cocoop, 100 classes, 32 images in micro-batches of 4": ((CoCoOp, {"n_ctx": 4}, 100, 32), {"micro_batch_size": 4}),
    "vpt-deep, 50 prompts, 8 images": "fast",
    "vpt-deep, 50 prompts, 8 images, written out": "reference",
    WHOLE_RUN: None,
}
TARGETS = {  # GB of 2**30 bytes
    "coop, 1000 classes": ("mb <= 1536",),
    "coop, 1000 classes, checkpointing": ("mb <= 614",),
    "cocoop, 100 classes, 32 images in micro-batches of 4": ("mb <= 614",),
    WHOLE_RUN: ("mb <= 3072",),
}
ROUNDS = dict.fromkeys(CASES, 1)
SINGLE_THREADED = True
COLUMNS = {
    "MB": make_number_column("mb:.0f"),
    "s": make_number_column("seconds:.1f"),
    "accuracy": make_number_column("accuracy:.1f"),
}


def build_step(spec, device, micro_batch_size=None, activation_checkpointing=False):
    """Return a training step of a method as a function without arguments."""
    setting, size = text.TextBenchmark(spec, device, torch.float32), spec[-1]
    train = TrainConfig(
        batch_size=size, micro_batch_size=micro_batch_size, activation_checkpointing=activation_checkpointing
    )
    loop = Loop(setting.method, Lesson(Split((), (), setting.names)), train, 0)
    batch = Batch(setting.images, setting.labels, setting.names)
    return lambda: loop.take_step(batch, 1e-6)


def measure_whole_run(device):
    """Measure a run in its own process, with its default number of threads."""
    from PIL import Image

    command = [str(Path(sys.executable).with_name("vlprompt")), "run", "coop", "images", "--out", "runs"]
    command += ["--backbone", "open_clip:ViT-B-16/random", "--shots", "1", "--seed", "1", "--device", device]
    command += ["method.n_ctx=16", "train.iterations=2", "train.batch_size=32"]
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as folder:
        names = list(dict.fromkeys(name.replace("/", "or") for name in text.load_imagenet_names()))
        names += [f"toy {name}" for name in names[: 1000 - len(names)]]  # two names of ImageNet are there twice
        for part in ("train", "test"):
            for k, name in enumerate(names):
                path = Path(folder, "images", part, name)
                path.mkdir(parents=True)
                colour = (k * 37 % 256, k * 101 % 256, k // 4)
                Image.new("RGB", (24, 24), colour).save(path / f"{part}.jpg")
        began = time.monotonic()
        with Path(folder, "said").open("w+") as said:
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=said, stderr=said)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                said.seek(0)
                raise SystemExit(f"the run ended with {process.returncode}: {said.read()[-500:]}")
        seconds = time.monotonic() - began
        (result,) = Path(folder, "runs").glob("*/result.json")
        found = json.loads(result.read_text())
    held = found["cost"]["peak_memory_mb"] if device == "cuda" else used.ru_maxrss / 2**10
    return {"mb": held, "seconds": seconds, "accuracy": found["summary"]["accuracy"]}


def measure_row(case, device, rounds):
    how = CASES[case]
    if how is None:
        return measure_whole_run(device)
    if isinstance(how, str):
        setting = vpt.VPTBenchmark("deep, 50 prompts, step", device, torch.float32)
        work = lambda: setting.run_variant(how)  # noqa: E731
    else:
        work = build_step(how[0], device, **how[1])
    began = time.monotonic()
    return {"mb": measure_peak_memory(work, device), "seconds": time.monotonic() - began}
