"""tools/bench recorded: steps of VPT, LoRA and MaPLe on a GPU, with recorded passes (CUDA graphs) and without.

Both forms are vlprompt's, on one ViT-B/16 with random weights: forward, loss, backward, and a step of SGD, in float32
or under bfloat16 autocast. Passes are recorded before the timed rounds. kept: what the recordings hold of the GPU's
memory. same: the largest relative difference of the gradients, of which the recorded ones are of a replay.
"""

from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from bench.measure import compare_rounds, time_call
from bench.rows import make_number_column
from vlprompt.backbones import load_backbone
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import Images
from vlprompt.core.stage import Lesson
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import VPT, CLIPLoRA, MaPLe
from vlprompt.runtime.seeding import make_generator


@dataclass(frozen=True)
class Case:
    """A step to compare: what builds the method on a CLIP, images of a step, classes, whether in bfloat16."""

    build: Any
    n_images: int
    n_classes: int = 100
    is_bf16: bool = False


def build_vpt(clip):
    return VPT(clip.image, LinearHead(), n_tokens=50, dropout=0.0)


def build_lora(clip):
    return CLIPLoRA(clip, dropout=0.0)


CASES = {
    "vpt, deep, 50 prompts, 8 images": Case(build_vpt, 8),
    "vpt, deep, 50 prompts, 8 images, bf16": Case(build_vpt, 8, is_bf16=True),
    "vpt, deep, 50 prompts, 32 images, bf16": Case(build_vpt, 32, is_bf16=True),
    "clip_lora, 4 images": Case(build_lora, 4),
    "clip_lora, 4 images, bf16": Case(build_lora, 4, is_bf16=True),
    "clip_lora, 32 images, bf16": Case(build_lora, 32, is_bf16=True),
    "maple, 4 images": Case(MaPLe, 4),
    "maple, 4 images, bf16": Case(MaPLe, 4, is_bf16=True),
}
TARGETS = dict.fromkeys(CASES, ("ratio >= 1.5",)) | dict.fromkeys(
    ("vpt, deep, 50 prompts, 32 images, bf16", "clip_lora, 32 images, bf16"), ("ratio >= 1.0",)
)
ROUNDS, N_STEPS, LEARNING_RATE = dict.fromkeys(CASES, 5), 10, 1e-6
SINGLE_THREADED = ON_GPU_ALONE = True
SETTING = "recorded before the timed rounds"
COLUMNS = {
    "unrecorded s": make_number_column("reference:.4f"),
    "recorded s": make_number_column("fast:.4f"),
    "ratio": make_number_column("ratio:.2f"),
    "least": make_number_column("min:.2f"),
    "largest": make_number_column("max:.2f"),
    "kept MB": make_number_column("kept_mb:.0f"),
    "same": make_number_column("difference:.0e"),
}


class RecordedSteps:
    """One method on a CLIP, whose towers record passes or, for a step, do not."""

    def __init__(self, case, clip):
        self.case, self.device = case, clip.device
        names = tuple(ClassName(f"kind {i}", str(i)) for i in range(case.n_classes))
        self.method = case.build(clip)
        self.method.begin_lesson(Lesson(Split((), (), names)), make_generator(0))
        self.parameters = [p for p in self.method.train().parameters() if p.requires_grad]
        torch.manual_seed(0)
        for p in self.parameters:  # a factor that is zero at first leaves the other one without a gradient
            p.data += 0.01 * torch.randn_like(p)
        pixels = torch.randn(case.n_images, 3, *clip.image.preprocessing.size, device=self.device)
        images = Images(lambda look, places: pixels[list(places)], [None] * case.n_images)
        self.batch = Batch(images, torch.arange(case.n_images, device=self.device) % case.n_classes, names)
        self.fixed = self.method.precompute(names)
        self.caches = {tower: tower.cuda_graphs for tower in (clip.image, clip.text)}

    def compute_gradients(self, is_recorded):
        for tower, cache in self.caches.items():
            tower.cuda_graphs = cache if is_recorded else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.is_bf16):
            terms, _ = self.method.loss_terms(self.batch, self.fixed)
        return torch.autograd.grad(sum(value for value, _ in terms.values()), self.parameters, allow_unused=True)

    def take_step(self, is_recorded):
        gradients = self.compute_gradients(is_recorded)
        with torch.no_grad():
            for p, g in zip(self.parameters, gradients, strict=True):
                if g is not None:
                    p -= LEARNING_RATE * g

    def record(self):
        """Take steps until passes are replayed; each of two kinds of step (smaller ones) would take two."""
        for _ in range(3):
            self.take_step(True)
        n_recorded = sum(slot is not None for cache in self.caches.values() for slot in cache.slots_by_kind.values())
        if not n_recorded:
            raise RuntimeError("no pass was recorded")

    def measure_difference(self):
        """Return the largest relative difference of the gradients of a replay."""
        pairs = zip(self.compute_gradients(True), self.compute_gradients(False), strict=True)
        return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs if b is not None)


def measure_row(case, device, rounds):
    if device != "cuda":
        raise RuntimeError("expected --device cuda: passes are recorded on a GPU alone")
    steps = RecordedSteps(CASES[case], load_backbone("open_clip:ViT-B-16/random", device))
    steps.take_step(False)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    steps.record()
    torch.cuda.empty_cache()
    found = {"kept_mb": (torch.cuda.memory_reserved() - before) / 2**20, "difference": steps.measure_difference()}
    seconds = {True: [], False: []}
    for _ in range(rounds):
        for is_recorded, measured in seconds.items():
            work = partial(steps.take_step, is_recorded)
            measured.append(median(time_call(work, device) for _ in range(N_STEPS)))
    return found | compare_rounds(seconds[False], seconds[True])
