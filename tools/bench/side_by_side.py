"""tools/bench side_by_side: trainings that differ by their seed, in lockstep against one after another.

All train on 4 images (a ViT-B/16: 1) of each of the ten handwritten digits with the settings of the method's recipe
for a few steps; cases of more classes add names without images. Features of images are cached before where a step does
not train them; tests are not timed. Seconds are of all trainings together; in lockstep their prompts are the rows of
one pass of the text tower. The rule of `--side-by-side` (vlprompt/experiments/side_by_side.py) follows these rows.
same: the largest relative difference of learned tensors.
"""

import statistics
from dataclasses import dataclass, replace
from functools import partial

from bench.measure import time_call
from bench.rows import make_number_column
from vlprompt.backbones import load_backbone
from vlprompt.config.build import build_method, build_task
from vlprompt.core.class_names import ClassName
from vlprompt.engine.loop import fit
from vlprompt.engine.side_by_side import TrainingGroup
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.runtime.seeding import make_generator

EMBEDDED, VIT = "glyph", "open_clip:ViT-B-16/random"


@dataclass(frozen=True)
class Case:
    """Trainings to compare: method, backbone, number of trainings, steps, images of each class, classes."""

    method: str
    backbone: str
    n_runs: int
    n_steps: int
    shots: int
    n_classes: int = 10


CASES = {
    "coop, embedded CLIP, 2 seeds": Case("coop", EMBEDDED, 2, 30, 4),
    "coop, embedded CLIP, 3 seeds": Case("coop", EMBEDDED, 3, 30, 4),
    "coop, embedded CLIP, 8 seeds": Case("coop", EMBEDDED, 8, 30, 4),
    "coop, embedded CLIP, 16 seeds": Case("coop", EMBEDDED, 16, 30, 4),
    "coop, embedded CLIP, 100 classes, 3 seeds": Case("coop", EMBEDDED, 3, 8, 4, 100),
    "kgcoop, embedded CLIP, 3 seeds": Case("kgcoop", EMBEDDED, 3, 30, 4),
    "prograd, embedded CLIP, 3 seeds": Case("prograd", EMBEDDED, 3, 30, 4),
    "cocoop, embedded CLIP, 3 seeds": Case("cocoop", EMBEDDED, 3, 15, 4),
    "maple, embedded CLIP, 3 seeds": Case("maple", EMBEDDED, 3, 8, 4),
    "promptsrc, embedded CLIP, 3 seeds": Case("promptsrc", EMBEDDED, 3, 8, 4),
    "coop, ViT-B/16, 2 seeds": Case("coop", VIT, 2, 2, 1),
    "coop, ViT-B/16, 3 seeds": Case("coop", VIT, 3, 2, 1),
    "coop, ViT-B/16, 40 classes, 3 seeds": Case("coop", VIT, 3, 1, 1, 40),
    "coop, ViT-B/16, 100 classes, 3 seeds": Case("coop", VIT, 3, 1, 1, 100),
}
ROUNDS = {case: 1 for case, one in CASES.items() if one.backbone == VIT and one.n_classes > 10}
SETTING = "cached image features where they are frozen, tests not timed"
COLUMNS = {
    "one by one s": make_number_column("reference:.2f"),
    "side by side s": make_number_column("fast:.2f"),
    "ratio": make_number_column("ratio:.2f"),
    "least": make_number_column("min:.2f"),
    "largest": make_number_column("max:.2f"),
    "same": make_number_column("difference:.0e"),
}


def measure_row(case, device, rounds):
    case = CASES[case]
    clip, n_runs = load_backbone(case.backbone, device), case.n_runs
    configs = resolve_sweep(
        [case.method], [case.shots], list(range(1, n_runs + 1)), dataset="digits", backbone=case.backbone
    )
    lessons = [add_names(next(iter(build_task(config.task).stages())).lesson, case.n_classes) for config in configs]

    def build(clip):
        return build_method(configs[0].method, clip)

    def train(index, clip, **options):
        method = build(clip)
        method.begin_lesson(lessons[index], make_generator(index))
        for _ in fit(
            method, lessons[index], replace(configs[index].train_config, iterations=case.n_steps), index, **options
        ):
            pass
        return method.state_dict()

    def train_alone():
        return [train(i, clip) for i in range(n_runs)]

    def train_together():
        group = TrainingGroup(clip, n_runs)
        return group.run([partial(train, m.index, m.clip, differentiate=m.differentiate) for m in group.members])

    pairs = [(a[k], b[k]) for a, b in zip(train_alone(), train_together(), strict=True) for k in a]
    slow, fast = [], []
    for _ in range(rounds):
        slow.append(time_call(train_alone, device))
        fast.append(time_call(train_together, device))
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "reference": statistics.median(slow),
        "fast": statistics.median(fast),
        "ratio": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "difference": max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs),
    }


def add_names(lesson, n_classes):
    """Return a lesson with more classes, of which it has no images."""
    names = (
        *lesson.train.names,
        *(ClassName(f"kind {i}", f"kind {i}") for i in range(len(lesson.train.names), n_classes)),
    )
    return replace(lesson, train=replace(lesson.train, names=names), val=None)
