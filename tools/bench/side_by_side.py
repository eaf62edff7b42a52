"""tools/bench side_by_side: trainings that differ by seed, rate or decay, in lockstep against one after another.

All train on 4 images (a ViT-B/16: 1) of each of the ten handwritten digits with the settings of the method's recipe
for a few steps; cases of more classes add names without images. Twelve settings are four rates times three decays with
one seed. Features of images are cached before where a step does not train them; tests are not timed. Seconds are of all
trainings together; in lockstep what they ask a tower for is one pass. The rule of `--side-by-side`
(vlprompt/experiments/side_by_side.py) follows these rows. in passes: the share of the seconds side by side that joined
passes take; ratio / share is what the ratio would be if all else took no time. same: the largest relative difference of
learned tensors.
"""

import statistics
from dataclasses import dataclass, replace
from functools import partial

from bench.measure import compare_rounds, time_call
from bench.rows import judge_row, make_number_column
from vlprompt.backbones import load_backbone
from vlprompt.config.build import build_method, build_task
from vlprompt.core.class_names import ClassName
from vlprompt.engine.loop import fit
from vlprompt.engine.side_by_side import TrainingGroup
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.runtime.seeding import make_generator

EMBEDDED, EMBEDDED_VIT, VIT = "glyph", "glyph-vit", "open_clip:ViT-B-16/random"


@dataclass(frozen=True)
class Case:
    """Trainings to compare: method, backbone, number of seeds, steps, images of each class, classes, images of a batch
    if not those of the recipe, and rates and decays that each seed is trained with, if not those of the recipe.
    """

    method: str
    backbone: str
    n_seeds: int
    n_steps: int
    shots: int
    n_classes: int = 10
    batch_size: int | None = None
    rates: tuple[float, ...] = ()
    decays: tuple[float, ...] = ()

    def resolve(self):
        """The configurations of all trainings."""
        seeds, train = list(range(1, self.n_seeds + 1)), {}
        if self.batch_size is not None:
            train = {"batch_size": self.batch_size}
        configs = resolve_sweep([self.method], [self.shots], seeds, dataset="digits", backbone=self.backbone)
        settings = [{"lr": lr, "weight_decay": decay} for lr in self.rates for decay in self.decays] or [{}]
        return [replace(c, train={**c.train, **train, **mine}) for c in configs for mine in settings]


TWELVE = {"rates": (0.0005, 0.001, 0.002, 0.004), "decays": (0.0, 0.0005, 0.01)}
CASES = {
    "coop, embedded CLIP, 2 seeds": Case("coop", EMBEDDED, 2, 30, 4),
    "coop, embedded CLIP, 3 seeds": Case("coop", EMBEDDED, 3, 30, 4),
    "coop, embedded CLIP, 8 seeds": Case("coop", EMBEDDED, 8, 30, 4),
    "coop, embedded CLIP, 16 seeds": Case("coop", EMBEDDED, 16, 30, 4),
    "coop, embedded CLIP, 12 settings": Case("coop", EMBEDDED, 1, 30, 4, **TWELVE),
    "coop, embedded CLIP, 100 classes, 3 seeds": Case("coop", EMBEDDED, 3, 8, 4, 100),
    "kgcoop, embedded CLIP, 3 seeds": Case("kgcoop", EMBEDDED, 3, 30, 4),
    "prograd, embedded CLIP, 3 seeds": Case("prograd", EMBEDDED, 3, 30, 4),
    "cocoop, embedded CLIP, 3 seeds": Case("cocoop", EMBEDDED, 3, 15, 4),
    "maple, embedded CLIP, 3 seeds": Case("maple", EMBEDDED, 3, 8, 4),
    "promptsrc, embedded CLIP, 3 seeds": Case("promptsrc", EMBEDDED, 3, 8, 4),
    "vpt, embedded ViT, batch 4, 3 seeds": Case("vpt", EMBEDDED_VIT, 3, 12, 4, batch_size=4),
    "vpt, embedded ViT, batch 4, 12 settings": Case("vpt", EMBEDDED_VIT, 1, 12, 4, batch_size=4, **TWELVE),
    "vpt, embedded ViT, batch 16, 3 seeds": Case("vpt", EMBEDDED_VIT, 3, 6, 4),
    "clip_lora, embedded CLIP, batch 4, 3 seeds": Case("clip_lora", EMBEDDED, 3, 12, 4, batch_size=4),
    "clip_lora, embedded CLIP, batch 32, 3 seeds": Case("clip_lora", EMBEDDED, 3, 6, 4),
    "coop, ViT-B/16, 2 seeds": Case("coop", VIT, 2, 2, 1),
    "coop, ViT-B/16, 3 seeds": Case("coop", VIT, 3, 2, 1),
    "coop, ViT-B/16, 40 classes, 3 seeds": Case("coop", VIT, 3, 1, 1, 40),
    "coop, ViT-B/16, 100 classes, 3 seeds": Case("coop", VIT, 3, 1, 1, 100),
    "vpt, ViT-B/16, batch 4, 3 seeds": Case("vpt", VIT, 3, 1, 1, batch_size=4),
}
ROUNDS = {case: 1 for case, one in CASES.items() if one.backbone == VIT and one.n_classes > 10}
TARGETS = {
    "coop, embedded CLIP, 3 seeds": ("ratio >= 2.0",),
    "coop, embedded CLIP, 12 settings": ("ratio >= 2.0",),
    "vpt, embedded ViT, batch 4, 3 seeds": ("ratio >= 2.0",),
    "vpt, embedded ViT, batch 4, 12 settings": ("ratio >= 2.0",),
    "clip_lora, embedded CLIP, batch 4, 3 seeds": ("ratio >= 2.0",),
    "coop, ViT-B/16, 3 seeds": ("ratio >= 1.0",),
    "coop, ViT-B/16, 100 classes, 3 seeds": ("ratio >= 1.0",),
    "vpt, ViT-B/16, batch 4, 3 seeds": ("ratio >= 1.0",),
}
SINGLE_THREADED = True
SETTING = "cached image features where they are frozen, tests not timed"
COLUMNS = {
    "one by one s": make_number_column("reference:.2f"),
    "side by side s": make_number_column("fast:.2f"),
    "ratio": make_number_column("ratio:.2f"),
    "least": make_number_column("min:.2f"),
    "largest": make_number_column("max:.2f"),
    "in passes": make_number_column("in_passes:.0%"),
    "same": make_number_column("difference:.0e"),
}


def explain_ratio(row):
    """Say what the ratio would be if each run's own work took no time."""
    most = row["ratio"] / row["in_passes"]
    return f"each run's own logits, loss, optimizer and batches: {most:.2f} if they took no time"


REASONS = dict.fromkeys(TARGETS, explain_ratio)


def render_details(rows, output_path):
    """List what was missed and why."""
    missed = [row for row in rows if any(ok is False for *_, ok in judge_row(TARGETS.get(row["case"], ()), row))]
    lines = [f"- {row['case']}: {row['ratio']:.2f}; {explain_ratio(row)}" for row in missed]
    return ["Below what is wanted:", "", *lines] if lines else []


class TimedGroup(TrainingGroup):
    """A group that adds up the seconds of its joined passes."""

    seconds = 0.0

    def serve(self, waiting):
        self.seconds += time_call(partial(super().serve, waiting), self.device.type)


def measure_row(case, device, rounds):
    case = CASES[case]
    clip, configs = load_backbone(case.backbone, device), case.resolve()
    n_runs = len(configs)
    lessons = [add_names(next(iter(build_task(config.task).stages())).lesson, case.n_classes) for config in configs]

    def build(clip):
        return build_method(configs[0].method, clip)

    def train(index, clip, **options):
        method = build(clip)
        seed, lesson, config = configs[index].seed, lessons[index], configs[index].train_config
        method.begin_lesson(lesson, make_generator(seed))
        for _ in fit(method, lesson, replace(config, iterations=case.n_steps), seed, **options):
            pass
        return method.state_dict()

    def train_alone():
        return [train(i, clip) for i in range(n_runs)]

    slow, fast, seconds_in_passes = [], [], []

    def train_together():
        group = TimedGroup(clip, n_runs)
        found = group.run([partial(train, m.index, m.backbone, differentiate=m.differentiate) for m in group.members])
        seconds_in_passes.append(group.seconds)
        return found

    pairs = [(a[k], b[k]) for a, b in zip(train_alone(), train_together(), strict=True) for k in a]
    for _ in range(rounds):
        slow.append(time_call(train_alone, device))
        fast.append(time_call(train_together, device))
    return compare_rounds(slow, fast) | {
        "in_passes": statistics.median(a / b for a, b in zip(seconds_in_passes[1:], fast, strict=True)),
        "difference": max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs),
    }


def add_names(lesson, n_classes):
    """Return a lesson with more classes, of which it has no images."""
    names = (
        *lesson.train.names,
        *(ClassName(f"kind {i}", f"kind {i}") for i in range(len(lesson.train.names), n_classes)),
    )
    return replace(lesson, train=replace(lesson.train, names=names), val=None)
