"""tools/bench plan: what vlprompt tells of a run's memory beforehand, against the peak of a training step.

Each in a fresh process, with a ViT-B/16-size CLIP of random weights, random pictures and the names of CIFAR-100's or
ImageNet's classes. Both numbers are of the whole process, libraries and model included; `above` is what stands above
the model, told and measured; `off` is how far the told peak is from the measured one.
"""

import time

import torch

from bench import text
from bench.rows import number
from vlprompt.core.batch import Split
from vlprompt.core.class_names import Name
from vlprompt.core.images import Item
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import Train
from vlprompt.experiments.memory_plan import plan
from vlprompt.layers.heads import Linear
from vlprompt.methods import VPT, CoCoOp, CoOp, MaPLe
from vlprompt.runtime import memory
from vlprompt.runtime.seeding import generator

CASES = {  # name -> method on a CLIP, classes, images a step, and how it is trained
    "coop, 100 classes, batch 32": (lambda clip: CoOp(clip, 16), 100, 32, {}),
    "coop, 400 classes, batch 32": (lambda clip: CoOp(clip, 16), 400, 32, {}),
    "coop, 1000 classes, batch 32": (lambda clip: CoOp(clip, 16), 1000, 32, {}),
    "coop, 1000 classes, checkpointing": (lambda clip: CoOp(clip, 16), 1000, 32, {"checkpointing": True}),
    "coop, own contexts, 100 classes": (lambda clip: CoOp(clip, 16, own=True), 100, 32, {}),
    "cocoop, 100 classes, batch 4": (lambda clip: CoCoOp(clip, 4), 100, 4, {}),
    "cocoop, 100 classes, batch 8 in micro-batches of 2": (lambda clip: CoCoOp(clip, 4), 100, 8, {"micro_batch": 2}),
    "maple, 100 classes, batch 4": (lambda clip: MaPLe(clip, 2), 100, 4, {}),
    "vpt-deep, 10 prompts, batch 8": (lambda clip: VPT(clip.image, Linear(), 10), 10, 8, {}),
    "vpt-deep, 50 prompts, batch 16": (lambda clip: VPT(clip.image, Linear(), 50), 10, 16, {}),
}
WANTED = dict.fromkeys(CASES, ("off <= 0.25",))
ROUNDS = dict.fromkeys(CASES, 1)
ONE_THREAD = True
COLUMNS = {
    "told MB": number("told:.0f"), "measured MB": number("mb:.0f"), "off": number("off:.2f"),
    "above MB, told": number("told_above:.0f"), "measured": number("above:.0f"),
    "told by s": number("seconds:.1f"), "step s": number("step:.1f"),
}  # fmt: skip


def row(case, device, rounds):
    made, classes, size, how = CASES[case]
    clip = text.Setting((CoOp, {"n_ctx": 16}, 10, 1), device, torch.float32).whole
    every = text.cifar() if classes <= 100 else text.imagenet()
    names = tuple(Name(every[i * (len(every) // classes)], str(i)) for i in range(classes))

    def item(i):
        return Item(f"plan/{i}", lambda look, view: torch.randn(3, *look.size, generator=generator("plan", i)))

    lesson = Lesson(Split(tuple(map(item, range(size))), tuple(i % classes for i in range(size)), names))
    train, device, began = Train(batch=size, epochs=1, warmup=0, **how), torch.device(device), time.monotonic()
    memory.limit(10**6)  # so that it is measured whatever its size
    told, seconds = plan(lambda: made(clip), lesson, train), time.monotonic() - began
    method, base = made(clip), memory.held(device)
    memory.forget(device)
    method.begin(lesson, generator(0))
    loop, batch = Loop(method.train(), lesson, train, 1), next(lesson.train.batches(size))
    loop.take(batch, 1e-6)
    began = time.monotonic()
    loop.take(batch, 1e-6)
    step, peak = time.monotonic() - began, memory.peak(device)
    found = {"told": told.megabytes, "mb": peak, "off": abs(told.megabytes - peak) / peak, "seconds": seconds}
    return found | {"told_above": told.megabytes - base, "above": peak - base, "step": step}
