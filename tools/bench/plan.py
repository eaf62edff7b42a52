"""tools/bench plan: what vlprompt tells of a run's memory beforehand, against the peak of its training steps.

Each in a fresh process, with a ViT-B/16-size CLIP of random weights, random pictures and the names of CIFAR-100's or
ImageNet's classes; decoded pictures are of 2000 x 1500 pixels, of which 1 GB is kept. The language model is a Llama of
27 million parameters (512 wide, 8 layers, 8192 words), with texts of 20 to 80 words and responses of four, loaded from
a folder. Both numbers are of the whole process, libraries and model included, of two processes the larger; `above` is
what stands above the model, told and measured; `off` is how far the told peak is from the measured one. The state is
copied after each step, as a run saves it. Seconds, of planning and of a step, are of the processor.
"""

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import lm, text
from bench.rows import make_number_column
from vlprompt import methods
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import TextItem
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.planning.memory_plan import plan_memory
from vlprompt.layers.heads import LinearHead
from vlprompt.layers.verbalizers import ResponseHead
from vlprompt.runtime import distributed, memory
from vlprompt.runtime.seeding import make_generator


@dataclass(frozen=True)
class Case:
    """A method, its lesson and how it is trained; of a language model where it has no classes.

    Args:
        make_method: of a CLIP or a language model.
        classes: of the lesson.
        batch_size: images or texts a step.
        settings: of the training.
        augment: of pictures that are decoded; "" for pixels as they are.
        n_items: of the lesson; default one batch.
        processes: which train together.
    """

    make_method: Callable[[Any], Any]
    classes: int = 0
    batch_size: int = 32
    settings: dict[str, Any] = field(default_factory=dict)
    augment: str = ""
    n_items: int | None = None
    processes: int = 1


def make_coop(clip):
    return methods.CoOp(clip, 16)


def make_vpt(clip, n_tokens=10):
    return methods.VPT(clip.image, LinearHead(), n_tokens)


def make_lora(model):
    return methods.LoRA(model, ResponseHead(model), rank=8, alpha=16.0, sites=("q", "v"))


def make_prompt_tuning(model):
    return methods.PromptTuning(model, ResponseHead(model), 20)


def make_full(clip):
    return methods.Full(clip.image, LinearHead())


def make_promptsrc(clip):
    return methods.PromptSRC(methods.IVLP(clip, 4, 4))


CHECKPOINTING, MICRO_BATCHES = {"activation_checkpointing": True}, {"micro_batch_size": 2}
CASES = {
    "coop, 100 classes, batch 32": Case(make_coop, 100),
    "coop, 400 classes, batch 32": Case(make_coop, 400),
    "coop, 1000 classes, batch 32": Case(make_coop, 1000),
    "coop, 1000 classes, checkpointing": Case(make_coop, 1000, settings=CHECKPOINTING),
    "coop, own contexts, 100 classes": Case(lambda clip: methods.CoOp(clip, 16, class_specific=True), 100),
    "cocoop, 100 classes, batch 4": Case(lambda clip: methods.CoCoOp(clip, 4), 100, 4),
    "cocoop, 100 classes, batch 8 in micro-batches of 2": Case(
        lambda clip: methods.CoCoOp(clip, 4), 100, 8, MICRO_BATCHES
    ),
    "maple, 100 classes, batch 4": Case(lambda clip: methods.MaPLe(clip, 2), 100, 4),
    "vpt-deep, 10 prompts, batch 8": Case(make_vpt, 10, 8),
    "vpt-deep, 50 prompts, batch 16": Case(functools.partial(make_vpt, n_tokens=50), 10, 16),
    "promptsrc, 100 classes, batch 4": Case(make_promptsrc, 100, 4),
    "tcp, 100 classes, batch 32": Case(lambda clip: methods.TCP(clip, 4), 100),
    "mmrl, 100 classes, batch 4": Case(lambda clip: methods.MMRL(clip, 5), 100, 4),
    "clip_lora, 100 classes, batch 4": Case(methods.CLIPLoRA, 100, 4),
    "full, batch 4, adamw": Case(make_full, 10, 4, {"optimizer": "adamw", "lr": 1e-5}),
    "full, batch 4, sgd": Case(make_full, 10, 4, {"optimizer": "sgd", "lr": 1e-4}),
    "coop, 100 classes, 128 decoded pictures": Case(make_coop, 100, augment="crop-flip", n_items=128),
    "vpt-deep, 112 decoded pictures, batch 16": Case(make_vpt, 10, 16, augment="crop-flip", n_items=112),
    "coop, 400 classes, two processes": Case(make_coop, 400, processes=2),
    "vpt-deep, 10 prompts, batch 16, two processes": Case(make_vpt, 10, 16, processes=2),
    "language, lora, batch 16": Case(make_lora, 0, 16, n_items=80),
    "language, prompt tuning, batch 16": Case(make_prompt_tuning, 0, 16, n_items=80),
    "language, lora, batch 16 in micro-batches of 2": Case(make_lora, 0, 16, MICRO_BATCHES, n_items=80),
    "language, lora, batch 16, checkpointing": Case(make_lora, 0, 16, CHECKPOINTING, n_items=80),
}
TARGETS = dict.fromkeys(CASES, ("relative_error <= 0.25", "seconds <= 20"))
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


def build_lesson(names, n_images, augment=""):
    """Build a lesson of random pixels, or with an augmentation of pictures of 2000 x 1500 that are decoded."""

    def build_item(i):
        if augment:
            from PIL import Image

            from vlprompt.data.images.decoding import build_image_item

            return build_image_item(f"plan/{i}", lambda: Image.new("RGB", (2000, 1500), (i, 2 * i % 256, 0)))
        return ImageItem(
            f"plan/{i}", lambda look, view: torch.randn(3, *look.size, generator=make_generator("plan", i))
        )

    items, labels = tuple(map(build_item, range(n_images))), tuple(i % len(names) for i in range(n_images))
    return Lesson(Split(items, labels, names, augment=augment or "none"))


def build_text_lesson(n_texts):
    draw = make_generator("plan")

    def write(low, high):
        n_words = int(torch.randint(low, high + 1, (1,), generator=draw))
        return " ".join(f"w{i}" for i in torch.randint(3, lm.VOCABULARY_SIZE, (n_words,), generator=draw).tolist())

    items = tuple(
        TextItem(str(i), {"text": write(20, 80)}, "{text} {mask}", "{text}", response=write(4, 4))
        for i in range(n_texts)
    )
    return Lesson(Split(items, (0,) * n_texts, (ClassName("response"),)))


def load_language_model(device):
    """Write the random Llama to a folder, and load it from there."""
    import vlprompt

    with tempfile.TemporaryDirectory() as folder:
        lm.build_llama("fp32", device).save_pretrained(folder)
        lm.build_tokenizer().save_pretrained(folder)
        return vlprompt.load(f"hf:{folder}", str(device))


def build_case(case, device):
    """Return a function that makes the method, and the lesson."""
    one = CASES[case]
    if not one.classes:
        model = load_language_model(device)
        return functools.partial(one.make_method, model), build_text_lesson(one.n_items)
    clip = text.TextBenchmark((methods.CoOp, {"n_ctx": 16}, 10, 1), device, torch.float32).full_clip
    every = text.load_cifar_names() if one.classes <= 100 else text.load_imagenet_names()
    names = tuple(ClassName(every[i * (len(every) // one.classes)], str(i)) for i in range(one.classes))
    lesson = build_lesson(names, one.n_items or one.batch_size, one.augment)
    return functools.partial(one.make_method, clip), lesson


def measure_case(case, device):
    """Measure a case in this process, or in all processes of the group."""
    one = CASES[case]
    make_method, lesson = build_case(case, device)
    epochs = 2 if one.n_items is None else 1
    train = TrainConfig(batch_size=one.batch_size, epochs=epochs, warmup=0, drop_last=False, **one.settings)
    device, read_clock = torch.device(device), time.process_time if device == "cpu" else time.monotonic
    began = read_clock()
    memory.set_limit(10**6)  # so that it is measured whatever its size
    told, seconds = plan_memory(make_method, lesson, train), read_clock() - began
    method, base = make_method(), memory.measure_used(device)
    memory.reset_peak(device)
    method.begin_lesson(lesson, make_generator(0))
    ends = [read_clock()]
    for step in fit(method, lesson, train, 1):
        ends.append(read_clock())
        step.loop.state()  # as a run saves it
    peak = max(distributed.all_gather(memory.measure_peak(device)))
    found = {"planned": told.peak_mb, "mb": peak, "relative_error": abs(told.peak_mb - peak) / peak, "seconds": seconds}
    return found | {"planned_above": told.peak_mb - base, "above": peak - base, "step": ends[-1] - ends[-2]}


def run_together(case):
    """Measure a case in several processes."""
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--no-python", "--nproc-per-node"]
    worker = [sys.executable, Path(__file__).parent, "plan", "--case", case, "--worker"]
    done = subprocess.run([*map(str, [*torchrun, CASES[case].processes, *worker])], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no word").splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def measure_row(case, device, rounds):
    if CASES[case].processes == 1:
        return measure_case(case, device)
    if distributed.read_world_size() == 1:
        return run_together(case)
    with distributed.open_process_group(device):
        found, is_main = measure_case(case, device), distributed.is_main_process()
    if not is_main:
        sys.exit()
    return found
