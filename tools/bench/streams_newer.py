"""tools/bench streams_newer: a lesson of each newer stream method on a ViT-B/16 with random weights.

Ours is `begin_lesson`, `fit`, `end_lesson` and the tests of all lessons so far. The written-out form is what the
papers' codes do, from the facts about them: every image goes through the tower in every epoch, again for each
statistic, again for each query, and every test image after every lesson, all rows of all blocks, with explicit
attention. Both begin with the same values, take the same steps (plain gradient descent, all images of a lesson at once)
and draw the same features; `same` is the largest difference of the logits of all tests after all lessons, over their
largest distance from the mean of their image. Seconds and operations are of one lesson, its share of the tests
included. Methods with a frozen tower keep features; where adapters, updates or all weights are trained, each image
must go through the tower in each epoch, so that what is left to gain are passes that later lessons repeat.
Texts of classes are random numbers for both. A row of few images says nothing of what grows with their number.
"""

import statistics
from typing import NamedTuple

import torch
import torch.nn.functional as F

from bench import measure
from bench.written_adapters import APER, EASE, LAE, MOS, TUNA, InfLoRA, SDLoRA
from bench.written_features import ENGINE, PROOF, RAPF, FeCAM, SimpleCIL
from bench.written_heads import SLCA, HiDePrompt, SLCApp
from vlprompt import methods as m
from vlprompt.backbones.timm.blocks import build_timm_tower
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem, Preprocessing
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.engine.evaluate import iter_logits
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.frozen_maps import FrozenLinear, identity
from vlprompt.layers.heads import CosineHead, LinearHead
from vlprompt.runtime.seeding import derive_seed, make_generator

CLASSES_PER_LESSON, TRAIN_PER_CLASS, TEST_PER_CLASS, TEXT_WIDTH, SEED = 2, 2, 1, 512, 1
MODEL = "vit_base_patch16_224"
TEMPLATE = "a photo of a {name}."
ALIGN = {"align_epochs": 6, "align_samples": 32}
SLOW = {"draws_per_class": 32, "alignment_epochs": 3}


class Case(NamedTuple):
    """A method and its written-out form, the lessons and the epochs of each, and the learning rate."""

    make: object
    written: type
    lessons: int = 2
    epochs: int = 2
    lr: float = 0.05


def make_aper(tower):
    return m.APER(m.AdaptFormer(tower, CosineHead(1.0), dropout=0.0))


METHODS = {
    "simplecil": Case(m.SimpleCIL, SimpleCIL, 4, 0),
    "aper": Case(make_aper, APER, 4, 2, 0.5),
    "fecam": Case(m.FeCAM, FeCAM, 4, 0),
    "slca": Case(lambda tower: m.SLCA(tower, **SLOW), SLCA),
    "slcapp": Case(lambda tower: m.SLCApp(tower, **SLOW), SLCApp),
    "ease": Case(lambda tower: m.EASE(tower, dropout=0.0), EASE, 3, 1, 0.5),
    "mos": Case(lambda tower: m.MOS(tower, LinearHead(), dropout=0.0, **ALIGN), MOS),
    "tuna": Case(lambda tower: m.TUNA(tower, dropout=0.0, **ALIGN), TUNA),
    "inflora": Case(lambda tower: m.InfLoRA(tower, LinearHead()), InfLoRA),
    "sdlora": Case(lambda tower: m.SDLoRA(tower, LinearHead()), SDLoRA),
    "hideprompt": Case(
        lambda tower: m.HiDePrompt(tower, LinearHead(), statistics="covariance", alignment_epochs=6, draws=30),
        HiDePrompt,
    ),
    "lae": Case(lambda tower: m.LAE(tower, LinearHead()), LAE, epochs=3),
    "rapf": Case(lambda clip: m.RAPF(clip, threshold=2.0, template=TEMPLATE), RAPF, epochs=3),
    "proof": Case(lambda clip: m.PROOF(clip, dropout=0.0, template=TEMPLATE), PROOF, epochs=3),
    "engine": Case(
        lambda clip: m.ENGINE(clip, text_weight=0.0, rerank_weight=0.0, template=TEMPLATE), ENGINE
    ),
}  # fmt: skip
EPOCHS = ("", " of 1 epoch", " of 2 epochs", " of 3 epochs")
NOTES = {"aper": ", adaptformer", "engine": ", without sentences", "lae": ", adapters"}
CASES = {
    f"{name}{NOTES.get(name, '')}, {case.lessons} lessons" + EPOCHS[case.epochs]: name for name, case in METHODS.items()
}
ON_CLIP = ("rapf", "proof", "engine")
FROZEN = ("simplecil", "fecam", "hideprompt", *ON_CLIP)
TARGETS = {case: ("ratio >= 1.5" if name in FROZEN else "ratio >= 1.0",) for case, name in CASES.items()}
TRAINED = "prompts, adapters or weights in the tower are trained: every image passes it in every epoch"
REASONS = {case: TRAINED for case, name in CASES.items() if name not in FROZEN or name == "hideprompt"}
ROUNDS = dict.fromkeys(CASES, 1)
SINGLE_THREADED, ON_CPU_ALONE = True, True  # the written-out forms draw on the CPU


class NewerStream:
    """The images, start values and settings of a case, and its two forms."""

    def __init__(self, case, device):
        import timm

        self.name = CASES.get(case, case)
        settings = METHODS[self.name]
        self.n_lessons, self.epochs, self.lr = settings.lessons, settings.epochs, settings.lr
        self.classes_per_lesson, self.device, self.written = CLASSES_PER_LESSON, torch.device(device), settings.written
        torch.manual_seed(0)
        self.trunk = timm.create_model(MODEL, num_classes=0).to(device).eval().requires_grad_(False)
        dim = self.trunk.num_features
        self.projection = torch.randn(TEXT_WIDTH, dim, generator=make_generator("projection")).to(device) / dim**0.5
        names = tuple(ClassName(str(i)) for i in range(CLASSES_PER_LESSON * self.n_lessons))
        self.names, self.pixels, self.splits = names, {}, {"train": [], "test": []}
        for k in range(self.n_lessons):
            for part, n in (("train", TRAIN_PER_CLASS), ("test", TEST_PER_CLASS)):
                self.splits[part].append(self._build_split(part, k, n))
        project, width = (FrozenLinear(self.projection), TEXT_WIDTH) if self.name in ON_CLIP else (identity, dim)
        look = Preprocessing((224, 224))
        self.tower = build_timm_tower(self.trunk, project, width, look, "bench", self.device)
        self.backbone = Clip(self.tower, self.encode_texts, 100.0, "bench") if self.name in ON_CLIP else self.tower
        self.config = TrainConfig(
            epochs=self.epochs, batch_size=1000, optimizer="sgd", lr=self.lr, momentum=0, weight_decay=0,
            schedule="constant", warmup=0, drop_last=False,
        )  # fmt: skip
        self.starts = []

    def _build_split(self, part, lesson, per_class):
        """Coarse patterns, alike within a class."""
        items, labels = [], []
        for label in range(CLASSES_PER_LESSON):
            centre = torch.randn(3, 14, 14, generator=make_generator("class", lesson, label))
            for i in range(per_class):
                noise = torch.randn(3, 14, 14, generator=make_generator(part, lesson, label, i))
                pixels = F.interpolate((centre + noise)[None], (224, 224))[0]
                key = f"{part}/{lesson}/{label}/{i}"
                self.pixels[key] = pixels.to(self.device)
                items.append(ImageItem(key, lambda look, view, pixels=pixels: pixels))
                labels.append(label)
        first = lesson * CLASSES_PER_LESSON
        return Split(tuple(items), tuple(labels), self.names[first : first + CLASSES_PER_LESSON])

    def encode_texts(self, texts):
        """Return random features (1, C, E) that stand for a text tower's."""
        rows = [torch.randn(TEXT_WIDTH, generator=make_generator("text", str(text))) for text in texts]
        return torch.stack(rows)[None].to(self.device)

    def batch(self, part, lesson):
        """Return the pixels (B, 3, h, w) and labels (B,) of a lesson, labels from 0 in it."""
        split = self.splits[part][lesson]
        pixels = torch.stack([self.pixels[item.key] for item in split.items])
        return pixels, torch.tensor(split.labels, device=self.device)

    def order_batch(self, lesson, epoch):
        """Return the batch of an epoch of the training, in the order of `fit`."""
        split = self.splits["train"][lesson]
        [batch] = split.batches(1000, seed=derive_seed(SEED, lesson), epoch=epoch)
        return torch.stack([self.pixels[key.partition("|")[0]] for key in batch.inputs.keys]), batch.labels

    def fast(self):
        """Train and test our form; record the start values of each lesson on the way."""
        self.tower.feature_cache.__init__()
        method, answers, self.starts = METHODS[self.name].make(self.backbone), [], []
        for k, train in enumerate(self.splits["train"]):
            lesson = Lesson(train, index=k, total=self.n_lessons)
            method.begin_lesson(lesson, make_generator("stream", k))
            seeds = {name: getattr(method, name) for name in ("seed", "draw_seed") if hasattr(method, name)}
            self.starts.append({name: p.detach().clone() for name, p in method.named_parameters()} | seeds)
            list(fit(method, lesson, self.config, seed=SEED))
            method.end_lesson(lesson)
            answers.append(torch.cat(list(iter_logits(method, self._join_tests(k)))))
        return answers

    def _join_tests(self, last):
        seen = self.splits["test"][0]
        for split in self.splits["test"][1 : last + 1]:
            seen = seen.concat(split)
        return seen

    def reference(self):
        return self.written(self).run()


def compare(found, written):
    """Return the largest difference of logits (B, C), over their largest distance from the mean of their row."""
    largest = 0.0
    for a, b in zip(found, written, strict=True):
        b = b.cpu().float()
        largest = max(largest, float((a - b).abs().max() / (b - b.mean(1, keepdim=True)).abs().max()))
    return largest


def measure_row(case, device, rounds):
    """Measure both forms in turns, each lesson's share, and compare their answers."""
    stream = NewerStream(case, device)
    parameter = torch.zeros(1, requires_grad=True)  # what is imported at a first step is no part of a lesson
    torch.optim.SGD([parameter], 0.1).zero_grad()
    seconds, flops, answers, rates = {"fast": [], "reference": []}, {}, {}, []
    for _ in range(rounds):
        rates.append(measure.measure_matmul_rate(device))
        for form in seconds:

            def work(form=form):
                answers[form], flops[form] = measure.count_flops(getattr(stream, form))

            seconds[form].append(measure.time_call(work, device) / stream.n_lessons)
    row = measure.compare_rounds(seconds["reference"], seconds["fast"])
    rate, n_flops = statistics.median(rates), flops["fast"] / stream.n_lessons
    row |= {"flops": n_flops, "matmul_rate": rate, "fraction_of_matmul_rate": n_flops / row["fast"] / rate}
    return row | {
        "flop_ratio": flops["reference"] / flops["fast"],
        "difference": compare(answers["fast"], answers["reference"]),
    }
