"""tools/bench precision: steps in half precision, and by compiled layers, against float32; and features.

ViT-B/16 size, random weights, CIFAR-100's names. A step is what `fit` makes of a batch with `train.precision` set, or
with each layer through torch.compile, which is no setting as it does not pay. logits, gradients: the largest difference
from float32 over the largest float32 value. first s: the first step, which compiles. cosine: the least between a
feature and its float32 form. Features are of eight images without the cache; GFLOP over the rate of one large float32
matrix product gives their matrix speed.
"""

import functools
import statistics
import time
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F

from bench.measure import compare_rounds, count_flops, measure_matmul_rate, time_call
from bench.operations import CASES as METHODS
from bench.operations import N_IMAGES
from bench.rows import TIMING_COLUMNS, make_number_column
from bench.text import load_cifar_names
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.compute_options import ComputeOptions
from vlprompt.core.images import Images
from vlprompt.core.introspection import apply_compute_options
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import TrainConfig
from vlprompt.runtime.seeding import make_generator

STEPS = {
    "coop": "coop, 100 classes",
    "maple": "maple, 100 classes, both towers",
    "vpt": "vpt-deep, 10 prompts",
}
OPTIONS = {"bf16": {"precision": "bf16"}, "fp16": {"precision": "fp16"}, "compile": {}}
CASES = {f"{name}, {option}": (name, option) for name in STEPS for option in OPTIONS} | {
    "features, float32": ("features", None),
    "features, bf16": ("features", "bf16"),
}
TARGETS = {"features, float32": ("fraction_of_matmul_rate >= 0.85",)}
REASONS = {
    "features, float32": "products take 85 % of the time, attention 7 %, copies of biases 3 %, norms and activation 5 %"
}
LEARNING_RATE, N_FEATURES, SINGLE_THREADED = 1e-6, 8, True
COLUMNS = {
    "float32 s": make_number_column("reference:.3f"),
    "this s": make_number_column("fast:.3f"),
    "ratio (of rounds)": TIMING_COLUMNS["ratio (of rounds)"],
    "first s": make_number_column("first:.1f"),
    "logits": make_number_column("logits:.0e"),
    "gradients": make_number_column("gradients:.0e"),
    "cosine": make_number_column("cosine:.6f"),
    "matrix speed": TIMING_COLUMNS["matrix speed"],
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class CompiledLayers(ComputeOptions):
    """Layers through torch.compile, which is no setting of a training: it did not pay."""

    def wrap_block_fn(self, block_fn):
        return compile_block_fn(block_fn)


@functools.cache
def compile_block_fn(block_fn):
    return torch.compile(block_fn)


def build_loops(name, option, device):
    """Return the float32 training and the other one, which begin alike, and their batch."""
    make, n_classes = METHODS[STEPS[name]]
    pixels, labels = torch.randn(N_IMAGES, 3, 224, 224, device=device), torch.arange(N_IMAGES, device=device)
    images = Images(lambda look, places: pixels[list(places)], [str(i) for i in range(N_IMAGES)])
    names = tuple(ClassName(word, str(i)) for i, word in enumerate(load_cifar_names()[:n_classes]))
    lesson, loops = Lesson(Split((), (), names)), []
    for options in ({}, OPTIONS[option]):
        clip = load_clip(device)
        if loops and option == "compile":
            clip.image.compute_options = clip.text.compute_options = CompiledLayers()
        method = make(clip)
        method.begin_lesson(lesson, make_generator(0))
        loops.append(Loop(method.train(), lesson, TrainConfig(batch_size=N_IMAGES, **options), 0))
    return *loops, Batch(images, labels, names)


def load_clip(device):
    import open_clip

    from vlprompt.backbones.open_clip.towers import wrap_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16-quickgelu")
    return wrap_clip(model, open_clip.get_tokenizer("ViT-B-16"), "bench", torch.device(device))


def compute_logits(loop, batch):
    dtype = DTYPES.get(loop.config.precision)
    options = apply_compute_options(loop.method, loop.config.compute_options)
    with torch.no_grad(), options, torch.autocast(loop.device.type, dtype) if dtype else nullcontext():
        return loop.method(batch.inputs, loop.method.prepare(batch.names, loop.precompute(batch.names))).logits


def differ(found, expected):
    """Return the largest difference over the largest expected value, of all tensors together."""
    largest = max(float(x.abs().max()) for x in expected)
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(found, expected, strict=True)) / largest


def measure_step(name, option, device, rounds):
    plain, other, batch = build_loops(name, option, device)
    (_, expected), began = plain.compute_gradients(batch), time.monotonic()
    _, found = other.compute_gradients(batch)
    first = time.monotonic() - began
    while not all(g.isfinite().all() for g in found):  # fp16: the scaler halves its first scale, and skips the step
        other.take_step(batch, 0.0)
        _, found = other.compute_gradients(batch)
    scale = other.scaler.get_scale() if other.scaler.is_enabled() else 1.0
    row = {"first": first, "gradients": differ([g / scale for g in found], expected)}
    row["logits"] = differ([compute_logits(other, batch)], [compute_logits(plain, batch)])
    calls = [lambda loop=loop: loop.take_step(replace(batch), LEARNING_RATE) for loop in (plain, other)]
    return row | compare(calls, device, rounds)


def compare(calls, device, rounds):
    """Time two calls in turns."""
    slow, fast = [], []
    for call in calls:
        call()
    for _ in range(rounds):
        slow.append(statistics.median(time_call(calls[0], device) for _ in range(3)))
        fast.append(statistics.median(time_call(calls[1], device) for _ in range(3)))
    return compare_rounds(slow, fast)


def measure_features(option, device, rounds):
    image, pixels = load_clip(device).image, torch.randn(N_FEATURES, 3, 224, 224, device=device)

    @torch.no_grad()
    def encode(dtype=None):
        with torch.autocast(device, dtype) if dtype else nullcontext():
            return image.encode(pixels)

    if option is None:
        _, flops = count_flops(encode)
        rates, seconds = [], []
        for _ in range(rounds):
            rates.append(measure_matmul_rate(device))
            seconds.append(statistics.median(time_call(encode, device) for _ in range(3)))
        fractions = [flops / a / b for a, b in zip(seconds, rates, strict=True)]
        row = {"fast": statistics.median(seconds), "matmul_rate": statistics.median(rates), "flops": flops}
        return row | {"fraction_of_matmul_rate": statistics.median(fractions)}
    dtype = DTYPES[option]
    cosine = F.cosine_similarity(encode(), encode(dtype).float()).min()
    return {"cosine": float(cosine)} | compare([encode, lambda: encode(dtype)], device, rounds)


def measure_row(case, device, rounds):
    name, option = CASES[case]
    return (
        measure_features(option, device, rounds) if name == "features" else measure_step(name, option, device, rounds)
    )
