"""tools/bench plan: what vlprompt tells of a run's memory beforehand, against the peak of a training step.

Each in a fresh process, with a ViT-B/16-size CLIP of random weights, random pictures and the names of CIFAR-100's or
ImageNet's classes. Both numbers are of the whole process, libraries and model included; `above` is what stands above
the model, told and measured; `off` is how far the told peak is from the measured one.
"""

import time

import torch

from bench import text
from bench.rows import make_number_column
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.memory_plan import plan_memory
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import VPT, CoCoOp, CoOp, MaPLe
from vlprompt.runtime import memory
from vlprompt.runtime.seeding import make_generator

CASES = {  # name -> method on a CLIP, classes, images a step, and how it is trained
    "coop, 100 classes, batch 32": (lambda clip: CoOp(clip, 16), 100, 32, {}),
    "coop, 400 classes, batch 32": (lambda clip: CoOp(clip, 16), 400, 32, {}),
    "coop, 1000 classes, batch 32": (lambda clip: CoOp(clip, 16), 1000, 32, {}),
    "coop, 1000 classes, checkpointing": (lambda clip: CoOp(clip, 16), 1000, 32, {"activation_checkpointing": True}),
    "coop, own contexts, 100 classes": (lambda clip: CoOp(clip, 16, class_specific=True), 100, 32, {}),
    "cocoop, 100 classes, batch 4": (lambda clip: CoCoOp(clip, 4), 100, 4, {}),
    "cocoop, 100 classes, batch 8 in micro-batches of 2": (
        lambda clip: CoCoOp(clip, 4),
        100,
        8,
        {"micro_batch_size": 2},
    ),
    "maple, 100 classes, batch 4": (lambda clip: MaPLe(clip, 2), 100, 4, {}),
    "vpt-deep, 10 prompts, batch 8": (lambda clip: VPT(clip.image, LinearHead(), 10), 10, 8, {}),
    "vpt-deep, 50 prompts, batch 16": (lambda clip: VPT(clip.image, LinearHead(), 50), 10, 16, {}),
}
TARGETS = dict.fromkeys(CASES, ("relative_error <= 0.25",))
ROUNDS = dict.fromkeys(CASES, 1)
SINGLE_THREADED = True
COLUMNS = {
    "told MB": make_number_column("planned:.0f"),
    "measured MB": make_number_column("mb:.0f"),
    "off": make_number_column("relative_error:.2f"),
    "above MB, told": make_number_column("planned_above:.0f"),
    "measured": make_number_column("above:.0f"),
    "told by s": make_number_column("seconds:.1f"),
    "step s": make_number_column("step:.1f"),
}


def build_lesson(names, n_images):
    """Build a lesson of random pictures."""

    def build_item(i):
        return ImageItem(
            f"plan/{i}", lambda look, view: torch.randn(3, *look.size, generator=make_generator("plan", i))
        )

    items = tuple(map(build_item, range(n_images)))
    return Lesson(Split(items, tuple(i % len(names) for i in range(n_images)), names))


def measure_row(case, device, rounds):
    made, classes, size, how = CASES[case]
    clip = text.TextBenchmark((CoOp, {"n_ctx": 16}, 10, 1), device, torch.float32).full_clip
    every = text.load_cifar_names() if classes <= 100 else text.load_imagenet_names()
    names = tuple(ClassName(every[i * (len(every) // classes)], str(i)) for i in range(classes))
    lesson = build_lesson(names, size)
    train, device, began = (
        TrainConfig(batch_size=size, epochs=1, warmup=0, **how),
        torch.device(device),
        time.monotonic(),
    )
    memory.set_limit(10**6)  # so that it is measured whatever its size
    told, seconds = plan_memory(lambda: made(clip), lesson, train), time.monotonic() - began
    method, base = made(clip), memory.measure_used(device)
    memory.reset_peak(device)
    method.begin_lesson(lesson, make_generator(0))
    loop, batch = Loop(method.train(), lesson, train, 1), next(lesson.train.batches(size))
    loop.take_step(batch, 1e-6)
    began = time.monotonic()
    loop.take_step(batch, 1e-6)
    step, peak = time.monotonic() - began, memory.measure_peak(device)
    found = {"planned": told.peak_mb, "mb": peak, "relative_error": abs(told.peak_mb - peak) / peak, "seconds": seconds}
    return found | {"planned_above": told.peak_mb - base, "above": peak - base, "step": step}
