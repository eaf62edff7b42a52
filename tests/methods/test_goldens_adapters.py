"""EASE, MOS and TUNA, one set of adapters per lesson, against numbers that their authors' own code computed."""

import pytest
import torch
import torch.nn.functional as F
from shared import golden, golden_cases, images, relative

from vlprompt import methods as m
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.layers.heads import LinearHead
from vlprompt.methods._alignment import AlignmentSettings, align_head
from vlprompt.runtime.seeding import make_generator

PARTS = {"down_proj": "down", "up_proj": "up"}


def ease(tower, h):
    return m.EASE(tower, h["ffn_num"], h["adapter_scale"], 0.0, h["alpha"], h["beta"] if h["use_init_ptm"] else 0.0)


def mos(tower, h):
    adapters = h["ffn_num"], h["adapter_scale"], 0.0
    return m.MOS(tower, LinearHead(), *adapters, h["adapter_momentum"], h["reg"])


def tuna(tower, h):
    adapters = h["bottleneck"], h["adapter_scale"], 0.0
    return m.TUNA(tower, *adapters, h["scale"], h["margin"], h["reg"] if h["use_orth"] else 0.0, h["decay"])


MAKE = {"ease": ease, "mos": mos, "tuna": tuna}


class Stream:
    """A golden vector as a stream of lessons for our method."""

    def __init__(self, case, tower):
        told, self.arrays = golden(case)
        self.case, self.h = case, told["hyperparameters"]
        self.sizes = self.h["task_sizes"]
        self.names = tuple(ClassName(f"class {i}", str(i)) for i in range(sum(self.sizes)))
        self.method = MAKE[case.partition("-")[0]](tower, self.h)
        self.errors = {}

    def group(self, t, kind):
        """The authors' arrays of a kind, such as "grad", by the names of the parameters."""
        start = f"task{t}.{kind}."
        return {name.removeprefix(start): value for name, value in self.arrays.items() if name.startswith(start)}

    def hold(self, name, mine, gold):
        self.errors[name] = relative(mine, gold)

    def seen(self, t):
        return self.names[: sum(self.sizes[: t + 1])]

    def begin(self, t):
        """The lesson, begun with the authors' values; its labels are places among its own classes."""
        begin, x = len(self.seen(t - 1)), self.arrays[f"task{t}.images"]
        items = tuple(ImageItem(f"{self.case}/{t}/{i}", lambda look, view, p=picture: p) for i, picture in enumerate(x))
        labels = tuple((self.arrays[f"task{t}.labels"] - begin).tolist())
        lesson = Lesson(Split(items, labels, self.names[begin : begin + self.sizes[t]]), index=t, total=len(self.sizes))
        self.method.begin_lesson(lesson, make_generator(t))
        for name, value in self.group(t, "param").items():
            ours, rows, gold = self.ours(t, name, value)
            ours.data[rows] = gold
        return lesson

    def ours(self, t, theirs, value):
        """(our parameter that is theirs, which of its rows, the rows of theirs that are those)"""
        kind, *rest = theirs.split(".")
        if kind.isdigit():  # of a whole set
            kind, rest = "adapter", [kind, *rest]
        if kind == "adapter":
            layer, part, name = rest
            return getattr(getattr(self.method.bank.sets[t][f"{layer}/mlp+"], PARTS[part]), name), ..., value
        if kind == "proxy_fc":
            head = self.method.head
            return (head.weight, ..., value) if rest[0] == "weight" else (head.gain, ..., value[0])
        name, n, total = (
            theirs.split(".")[-1],
            len(self.seen(t)),
            sum(self.sizes),
        )  # a head of all classes, or of new ones
        rows = slice(0 if len(value) == total else n - self.sizes[t], n)
        return getattr(self.method.head, name), rows, value[:n] if len(value) == total else value

    def compare(self, t, kind, of=lambda p: p.detach()):
        for name, value in self.group(t, kind).items():
            ours, rows, gold = self.ours(t, name, value)
            self.hold(f"{t} {kind} {name}", of(ours)[rows], gold)

    def step(self, t, lesson):
        """Compare a plain step of SGD on all images."""
        batch, method = next(lesson.train.batches(100)), self.method.train()
        terms, out = method.loss_terms(batch, method.precompute(batch.names))
        for name, (value, _) in terms.items():
            if (gold := self.arrays.get(f"task{t}.loss_{name}")) is not None:
                self.hold(f"{t} {name}", value / (self.h["reg"] if name == "contrast" else 1.0), gold)
        loss = sum(value for value, _ in terms.values())
        self.hold(f"{t} loss", loss, self.arrays[f"task{t}.loss"])
        if f"task{t}.train.logits" in self.arrays:
            self.hold(f"{t} logits", out.logits, self.arrays[f"task{t}.train.logits"])
        loss.backward()
        self.compare(t, "grad", lambda p: p.grad)
        with torch.no_grad():
            for group in method.param_groups():
                for p in group["params"]:
                    p -= self.h["train_lr"] * group.get("lr_factor", 1.0) * p.grad
        method.zero_grad()
        self.compare(t, "after")
        method.end_step(1, 1)

    def answer(self, t):
        method, names = self.method.eval(), self.seen(t)
        x = images(self.arrays["test.images"], f"{self.case} test")
        with torch.no_grad():
            return method(x, method.prepare(names, method.precompute(names)))

    def check(self):
        print(self.case, max(self.errors.values()))
        assert max(self.errors.values()) < 1e-4, {k: v for k, v in self.errors.items() if v >= 1e-4}


@pytest.mark.parametrize("case", golden_cases("ease"))
def test_ease(authors_tower, case):
    stream = Stream(case, authors_tower)
    for t in range(len(stream.sizes)):
        lesson = stream.begin(t)
        stream.step(t, lesson)
        stream.method.end_lesson(lesson)
        means, _ = stream.method.means.compute()
        stream.hold(f"{t} prototypes", means.flatten(1).float(), stream.arrays[f"task{t}.prototypes"])
        n = len(stream.arrays[f"task{t}.eval.logits"])
        stream.hold(f"{t} answer", stream.answer(t).logits[:n], stream.arrays[f"task{t}.eval.logits"])
    with torch.no_grad():
        features = stream.method.encode(images(stream.arrays["test.images"], f"{case} test")).flatten(1)
    stream.hold("features", features, stream.arrays["test.features_raw"])
    stream.check()


@pytest.mark.parametrize("case", golden_cases("mos", suits=lambda told: "once a step" in told["method"]))
def test_mos(authors_tower, case):
    stream = Stream(case, authors_tower)
    method, arrays = stream.method, stream.arrays
    for t in range(len(stream.sizes)):
        lesson = stream.begin(t)
        stream.step(t, lesson)
        stream.compare(t, "stored")
        method.align_epochs = 0
        method.end_lesson(lesson)
        hold_gaussians(stream, t)
        if t:
            align(stream, t)
            stream.compare(t, "ca.after")
        means = method.first_means.compute()[0]
        stream.hold(f"{t} prototypes", means[:, 0].float(), arrays[f"task{t}.prototypes"])
        n = len(arrays[f"task{t}.eval.answer"])
        out = stream.answer(t)
        stream.hold(f"{t} answer", 2 * out.logits[:n].exp(), arrays[f"task{t}.eval.answer"])
    stream.check()


def hold_gaussians(stream, t):
    """The statistics of the lesson's classes: means, and the covariances that the file has (the first ones)."""
    gaussians, size = stream.method.gaussians, stream.sizes[t]
    rows = slice(len(gaussians.class_ids) - size, None)
    stream.hold(f"{t} mean", gaussians.means[rows, 0], stream.arrays[f"task{t}.mean"])
    covariances = stream.arrays[f"task{t}.cov"]
    stream.hold(f"{t} covariance", gaussians.spreads[rows][: len(covariances)], covariances)


def align(stream, t, mean_factors=None):
    """Align the head on the authors' normal numbers, in their order."""
    method, h = stream.method, stream.h
    noise, order = stream.arrays[f"task{t}.ca.z"], stream.arrays[f"task{t}.ca.order"]

    def draw_classes(rows, n, generator, factors=None):
        assert n == h["ca_samples_per_class"] == noise.shape[1]
        drawn = [
            method.gaussians.draw(row, noise[i], 1.0 if factors is None else factors[i]) for i, row in enumerate(rows)
        ]
        return torch.cat(drawn)[order], torch.arange(len(rows)).repeat_interleave(n)[order]

    settings = AlignmentSettings(1, h["ca_lr"], h["ca_samples_per_class"], h["ca_momentum"], weight_decay=0.0)
    method.gaussians.draw_classes = draw_classes
    align_head(method.head, method.gaussians, 0, settings, mean_factors)
    del method.gaussians.draw_classes


@pytest.mark.parametrize("case", golden_cases("tuna"))
def test_tuna(authors_tower, case):
    stream = Stream(case, authors_tower)
    method, h = stream.method, stream.h
    for t in range(len(stream.sizes)):
        lesson = stream.begin(t)
        stream.step(t, lesson)
        method.align_epochs = 0
        method.end_lesson(lesson)
        hold_gaussians(stream, t)
        if t:
            align(stream, t, method.compute_mean_factors(stream.sizes[t]) if h["decay"] else None)
            stream.hold(f"{t} aligned", method.head.weight, stream.arrays[f"task{t}.ca.after.heads"])
        gold, out = stream.arrays[f"task{t}.eval.answer"], stream.answer(t)
        mine = out.logits[: len(gold)].exp()
        stream.hold(f"{t} answer", 2 * mine if t else mine, gold if t else (h["scale"] * gold).softmax(1))
        hold_universal(stream, t)
    stream.check()


def hold_universal(stream, t):
    """The weights of the universal adapters, read back from what they do."""
    adapters, gold = stream.method.bank.fuse().adapters, stream.group(t, "universal")
    x = torch.randn(3, 2, stream.method.tower.dim, generator=make_generator("x"))
    for layer in sorted({name.split(".")[0] for name in gold}):
        down, up = ([gold[f"{layer}.{part}.{name}"] for name in ("weight", "bias")] for part in PARTS)
        made = stream.h["adapter_scale"] * F.linear(F.linear(x, *down).relu(), *up)
        stream.hold(f"{t} universal {layer}", adapters[f"{layer}/mlp+"](x, torch.zeros_like(x)), made)
