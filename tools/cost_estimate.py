"""What runs will cost before they are made: images, steps, and by a measured step their hours and memory."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlprompt.config.build import build_method
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import Name, ids
from vlprompt.core.images import Images, Item, Look
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Backbone
from vlprompt.data.dataset import Data
from vlprompt.data.loading import open_data
from vlprompt.data.splits.sampling import halves
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import Train
from vlprompt.runtime import memory
from vlprompt.runtime.paths import configs_folder
from vlprompt.runtime.seeding import generator

MEASURED = (10, 40)  # classes
PICTURES = 8  # test images at once when a test is measured


@dataclass(frozen=True)
class Size:
    """A dataset as far as costs depend on it: training images of each class (None: enough for any shots) and tests.

    missing: what is wrong with the data where they are not here to be counted.
    """

    classes: int
    test: int
    counts: tuple[int, ...] | None = None
    names: tuple[str, ...] = ()
    missing: str = ""


def size_of(dataset: str) -> Size:
    """Counted where the data are here, else by configs/reference/datasets.yaml, else of nothing known (0 classes)."""
    import yaml

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of names alike; the run itself tells them
            data: Data = open_data(dataset)
    except (ValueError, OSError) as error:
        path = configs_folder() / "reference" / "datasets.yaml"
        told = yaml.safe_load(path.read_text("utf-8")).get(Path(dataset).name, {"classes": 0, "test": 0})
        return Size(told["classes"], told["test"], missing=str(error))
    train = data.train
    return Size(len(train.names), len(data.test), tuple(train.count()), ids(train.names))


@dataclass(frozen=True)
class Work:
    """One run: training images, classes, steps, and (images, classes) of each of its tests."""

    images: int
    classes: int
    steps: int
    tests: tuple[tuple[int, int], ...]


def work(plan: dict[str, Any], sizes: dict[str, Size], trains: bool) -> Work:
    """What a configuration comes to.

    Base-to-new trains on a half and tests on both and on all classes; a transfer tests on several datasets.
    """
    task = plan["task"]
    size, shots = sizes[task["dataset"]], task.get("shots")
    chosen, tests = list(range(size.classes)), [(size.test, size.classes)]
    if task["name"] == "base_to_new" and size.classes:
        known = task.get("base") and size.names
        chosen = [size.names.index(i) for i in task["base"]] if known else halves(size.classes)[0]
        both = len(chosen), size.classes - len(chosen)
        tests += [(round(size.test * n / size.classes), n) for n in both]
    tests += [(sizes[t].test, sizes[t].classes) for t in task.get("targets") or ()]
    counts = size.counts or (shots or 0,) * size.classes
    images = sum(counts[c] if shots is None else min(shots, counts[c]) for c in chosen)
    steps = Train(**plan["train"]).length(images)[2] if trains and images else 0
    return Work(images, len(chosen), steps, tuple(tests))


def _lesson(clip: Backbone, classes: int, images: int) -> Lesson:
    """Random pictures; the names are two words long."""
    names = tuple(Name(f"thing {i}", str(i), "a photo of a {name}.") for i in range(classes))

    def pixels(look: Look, view: object) -> torch.Tensor:
        return torch.rand(3, *look.size)

    items = tuple(Item(f"random/{i}", pixels) for i in range(images))
    return Lesson(Split(items, tuple(i % classes for i in range(images)), names))


def _drawn(images: int) -> Images:
    """Random pixels that no tower stores."""
    return Images(
        lambda look, places: torch.rand(len(places), 3, *look.size), [None] * images, lambda augment, k: _drawn(images)
    )


def trains(about: dict[str, Any], clip: Backbone) -> bool:
    """Whether a method has anything to train."""
    method = build_method(about, clip)
    lesson = _lesson(clip, 2, 2)
    method.begin(replace(lesson, val=lesson.train), generator(0))
    return any(p.requires_grad for p in method.parameters())


@dataclass(frozen=True)
class Line:
    """a + b * classes, through two measured points."""

    a: float
    b: float

    def __call__(self, classes: int) -> float:
        return self.a + self.b * classes

    @classmethod
    def through(cls, first: float, second: float) -> "Line":
        low, high = MEASURED
        b = max(0.0, (second - first) / (high - low))
        return cls(max(0.0, first - b * low), b)


@dataclass(frozen=True)
class Price:
    """Seconds of a step, of preparing a test and of a test image, and peak MB, as lines over the classes."""

    step: Line
    prepare: Line
    image: Line
    memory: Line

    def seconds(self, work: Work) -> float:
        tests = sum(self.prepare(classes) + images * self.image(classes) for images, classes in work.tests)
        return work.steps * self.step(work.classes) + tests

    def megabytes(self, work: Work) -> float:
        return self.memory(max([work.classes, *(classes for _, classes in work.tests)]))


def price(plan: dict[str, Any], clip: Backbone) -> Price:
    """Measured here: a step at the plan's batch and micro-batch, and a test, at 10 and at 40 classes.

    Reading and decoding pictures is not in it, nor what is saved by features that are stored.
    """
    first, second = (_measured(plan, clip, classes) for classes in MEASURED)
    return Price(*(Line.through(a, b) for a, b in zip(first, second, strict=True)))


def _measured(plan: dict[str, Any], clip: Backbone, classes: int) -> tuple[float, float, float, float]:
    train, method = Train(**plan["train"]), build_method(plan["method"], clip)
    lesson = _lesson(clip, classes, train.batch)
    memory.forget(clip.device)
    with torch.random.fork_rng():
        method.begin(replace(lesson, val=lesson.train), generator(0))
        step = 0.0
        if any(p.requires_grad for p in method.parameters()):
            method.train()
            loop = Loop(method, lesson, train, 1)

            def take() -> None:
                labels = torch.arange(train.batch) % classes
                loop.take(Batch(_drawn(train.batch), labels, lesson.train.names), train.warmup_lr)

            take()  # the first step prepares what later ones find
            step = _clock(clip, take)
        method.eval()
        with torch.no_grad():
            names, held = lesson.train.names, list[Any]()
            prepare = _clock(clip, lambda: held.append(method.prepare(names, method.fixed(names))))
            size = min(PICTURES, train.micro_batch or PICTURES)
            test = _clock(clip, lambda: method(_drawn(size), held[0])) / size
    return step, prepare, test, memory.peak(clip.device)


def _clock(clip: Backbone, do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    if clip.device.type == "cuda":
        torch.cuda.synchronize(clip.device)
    return time.perf_counter() - began
