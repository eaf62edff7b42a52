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
from bench.measure import memory
from bench.rows import number
from vlprompt.core.batch import Batch, Split
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import Train
from vlprompt.methods import CoCoOp, CoOp

THOUSAND = CoOp, {"n_ctx": 16}, 1000, 32
PEAK = "whole run, coop, 1000 classes"
CASES = {  # name -> what a step is of, and how it is made; or the form of a step of VPT
    "coop, 1000 classes": (THOUSAND, {}),
    "coop, 1000 classes, checkpointing": (THOUSAND, {"checkpointing": True}),
    "cocoop, 100 classes, 32 images in micro-batches of 4": (
        (CoCoOp, {"n_ctx": 4}, 100, 32), {"micro_batch": 4}),
    "vpt-deep, 50 prompts, 8 images": "fast",
    "vpt-deep, 50 prompts, 8 images, written out": "written_out",
    PEAK: None,
}  # fmt: skip
WANTED = {  # GB of 2**30 bytes
    "coop, 1000 classes": ("mb <= 1536",),
    "coop, 1000 classes, checkpointing": ("mb <= 614",),
    "cocoop, 100 classes, 32 images in micro-batches of 4": ("mb <= 614",),
    PEAK: ("mb <= 3072",),
}
ROUNDS = dict.fromkeys(CASES, 1)
ONE_THREAD = True
COLUMNS = {"MB": number("mb:.0f"), "s": number("seconds:.1f"), "accuracy": number("accuracy:.1f")}


def step(spec, device, micro_batch=None, checkpointing=False):
    """A training step of a method as work without arguments."""
    setting, size = text.Setting(spec, device, torch.float32), spec[-1]
    train = Train(batch=size, micro_batch=micro_batch, checkpointing=checkpointing)
    loop = Loop(setting.method, Lesson(Split((), (), setting.names)), train, 0)
    batch = Batch(setting.images, setting.labels, setting.names)
    return lambda: loop.take(batch, 1e-6)


def whole(device):
    """A run in a process of its own, with the threads that it takes by itself."""
    from PIL import Image

    command = [str(Path(sys.executable).with_name("vlprompt")), "run", "coop", "images", "--out", "runs"]
    command += ["--backbone", "open_clip:ViT-B-16/random", "--shots", "1", "--seed", "1", "--device", device]
    command += ["method.n_ctx=16", "train.iterations=2", "train.batch=32"]
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as folder:
        names = list(dict.fromkeys(name.replace("/", "or") for name in text.imagenet()))
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


def row(case, device, rounds):
    how = CASES[case]
    if how is None:
        return whole(device)
    if isinstance(how, str):
        setting = vpt.Setting("deep, 50 prompts, step", device, torch.float32)
        work = lambda: setting.work(how)  # noqa: E731
    else:
        work = step(how[0], device, **how[1])
    began = time.monotonic()
    return {"mb": memory(work, device), "seconds": time.monotonic() - began}
