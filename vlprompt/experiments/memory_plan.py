"""Before a run: what a step will hold and take, and where that is more than there is, how to do with less; exact.

A step and a test of a few classes and images are made, their tensors counted: what they hold is linear in
either. Language models are not planned: there train.micro_batch and train.checkpointing are for the user to say.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch

from vlprompt.core.batch import Batch, Split
from vlprompt.core.compute_options import How
from vlprompt.core.introspection import backbone_of, computed
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower, tower_of
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import Train
from vlprompt.runtime import memory
from vlprompt.runtime.seeding import generator

SEEN, FEW = 40, (2, 4)  # classes that are measured at most, and images
SMALL = 2e9  # parameters x (classes + images at once) under which nothing is measured
TESTED = 100  # images at once in a test, as evaluate has it
SLACK, FIRST = 1.1, 48.0  # what an allocator adds to what is held, and MB that the first step takes for good
KEEPS = 1.5  # what glibc adds where memory is not given back (memory.give_back), as measured: 1.5 to 1.8
SLOWER = {"checkpointing": 1.4, "chunk": 1.6}  # a step, as measured


@dataclass(frozen=True)
class Bill:
    """a + b * classes + c * images + d * both."""

    a: float
    b: float
    c: float
    d: float

    def __call__(self, classes: float, images: float) -> float:
        return self.a + self.b * classes + self.c * images + self.d * classes * images

    @classmethod
    def through(cls, points: dict[tuple[int, int], float]) -> "Bill":
        """Through (classes, images) -> value at one or two numbers of classes and one or two of images; none falls."""
        (c1, *more), (b1, *two) = (sorted({point[k] for point in points}) for k in (0, 1))
        c2, b2 = (more or [c1 + 1])[0], (two or [b1 + 1])[0]
        at = lambda c, b: points.get((c, b), points.get((c, b1), points.get((c1, b), points[c1, b1])))  # noqa: E731
        d = max(0.0, at(c2, b2) - at(c2, b1) - at(c1, b2) + at(c1, b1)) / ((c2 - c1) * (b2 - b1))
        b = max(0.0, (at(c2, b1) - at(c1, b1)) / (c2 - c1) - d * b1)
        c = max(0.0, (at(c1, b2) - at(c1, b1)) / (b2 - b1) - d * c1)
        return cls(at(c1, b1) - b * c1 - c * b1 - d * c1 * b1, b, c, d)


@dataclass(frozen=True)
class Plan:
    """What a run will take: MB at most (of the process; on a GPU of its memory), of `room` that there is, and seconds.

    tensors: MB of what a step or a test makes. chosen: settings of training other than asked for, with which it fits;
    the numbers learned are the same. asked: MB without them. Where nothing was measured, seconds are 0.
    """

    megabytes: float
    room: float
    seconds: float
    chosen: dict[str, Any] = field(default_factory=dict)
    asked: float = 0.0
    tensors: float = 0.0

    @property
    def fits(self) -> bool:
        return self.megabytes <= self.room

    def __str__(self) -> str:
        had = f"{self.megabytes / 1024:.2f} GB at most, {told(self.seconds)}"
        if not self.chosen:
            return had if self.fits else f"{had}; there are {self.room / 1024:.2f} GB, so it may not fit"
        how = ", ".join(f"train.{k}={v}" for k, v in self.chosen.items())
        short = "" if self.fits else ", which may still not fit"
        return f"{self.asked / 1024:.2f} GB asked, {self.room / 1024:.2f} there: {how} (the same numbers){short}; {had}"


def told(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def part_of(lesson: Lesson, classes: int, images: int) -> Lesson:
    """So many of its classes, short names and long ones, and images, some of them twice where there are too few."""
    names = lesson.train.names
    by_length = sorted(range(len(names)), key=lambda i: len(str(names[i])))
    chosen = [by_length[i * len(names) // classes] for i in range(classes)]

    def few(split: Split) -> Split:
        found = split.classes(chosen)
        found = found if len(found) else replace(split, labels=(0,) * len(split), names=found.names)
        return found.of([i % len(found) for i in range(images)]) if len(found) else found

    train = few(lesson.train)
    beside = lesson.unlabelled
    if beside is not None:
        items = tuple(beside.items[i % len(beside)] for i in range(images)) if len(beside) else ()
        beside = replace(beside, items=items, names=train.names)
    return replace(
        lesson, train=train, val=None if lesson.val is None else few(lesson.val), unlabelled=beside, memory=None
    )


def plan(build: Callable[[], Method], lesson: Lesson, train: Train, tested: int = 0) -> Plan:
    """What training by this method on this lesson takes, and testing so many images.

    build: makes the method anew. A lesson of few classes and images is what is measured, with their own names and
    pictures; features are computed, and kept.
    """
    method = build()
    backbone = backbone_of(method)
    tower = None if backbone is None else tower_of(backbone)
    device = torch.device("cpu") if tower is None else tower.device
    base, classes = memory.held(device), len(lesson.train.names)
    room = memory.free(device) + base
    if not isinstance(tower, VisionTower) or backbone is None:
        return Plan(base, room, 0.0)
    if not memory.limited() and backbone.size * (classes + train.batch) < SMALL:
        return Plan(base, room, 0.0)
    first = min(classes, SEEN // 2)
    sizes = sorted({first, min(classes, 2 * first)})
    whole = any(getattr(part, "whole_batch", False) for part in method.modules())
    images = len(lesson.train) or (0 if lesson.unlabelled is None else len(lesson.unlabelled))
    batch = min(train.batch, images) if images else 0
    steps = train.length(images)[2] if images and train.epochs else 0

    def bills(how: Train) -> tuple[Bill, Bill, Bill, Bill]:
        points = {(c, b): _measured(build(), part_of(lesson, c, b), how) for c, b in product(sizes, FEW)}
        return tuple(Bill.through({at: v[k] for at, v in points.items()}) for k in range(4))  # type: ignore[return-value]

    priced = {False: bills(replace(train, checkpointing=False, chunk=None, micro_batch=None))}

    def cost(micro: int, spared: bool, chunk: int | None) -> tuple[float, float, float]:
        """MB, seconds, and MB of tensors."""
        if spared not in priced:
            priced[spared] = bills(replace(train, checkpointing=True, chunk=None, micro_batch=None))
        held, _, test, look = priced[spared]
        at_once = min(classes, chunk or classes)
        most = max(
            held(at_once, micro) if steps else 0.0,
            test(at_once, min(micro if micro < batch else TESTED, tested)) if tested else 0.0,
        )
        slower = (SLOWER["checkpointing"] if spared else 1.0) * (SLOWER["chunk"] if at_once < classes else 1.0)
        step = -(-batch // micro) * priced[False][1](classes, micro) * slower if batch else 0.0
        tensors = most / 2**20
        slack = SLACK if device.type == "cuda" or spared or chunk else KEEPS
        return base + FIRST + slack * tensors, steps * step + tested * look(classes, 1), tensors

    given = train.micro_batch or batch or TESTED
    asked = cost(min(given, batch or given), train.checkpointing, train.chunk)
    if asked[0] <= room:
        return Plan(asked[0], room, asked[1], tensors=asked[2])
    able = _able(method)
    ways = [way for way in product(_halves(given, whole), {train.checkpointing, "checkpointing" in able},
                                   {train.chunk, *((256, 64, 16) if "chunk" in able else ())})
            if way[2] is None or way[2] < classes]  # fmt: skip
    found = [(cost(*way), way) for way in ways]
    fitting = [f for f in found if f[0][0] <= room]
    (most, seconds, tensors), (micro, spared, chunk) = (
        min(fitting, key=lambda f: f[0][1]) if fitting else min(found, key=lambda f: f[0][0])
    )
    chosen: dict[str, Any] = {"micro_batch": micro} if micro != given else {}
    chosen |= {"checkpointing": True} if spared and not train.checkpointing else {}
    chosen |= {"chunk": chunk} if chunk != train.chunk else {}
    return Plan(most, room, seconds, chosen, asked[0], tensors)


def _halves(batch: int, whole: bool) -> Iterator[int]:
    while batch:
        yield batch
        batch = 0 if whole else batch // 2


def _able(method: Method) -> set[str]:
    """The settings that spare memory and that the method's towers know."""
    found = set[str]()
    for name, how in (("checkpointing", How(checkpointing=True)), ("chunk", How(chunk=16))):
        try:
            with computed(method, how):
                found.add(name)
        except ValueError:
            continue
    return found


def _measured(method: Method, lesson: Lesson, train: Train) -> tuple[float, float, float, float]:
    """Bytes of a step, its seconds, bytes of a test of all the images, its seconds for each image."""
    with torch.random.fork_rng():
        method.begin(lesson, generator(0))
        step = held = 0.0
        images, names = next(lesson.train.batches(len(lesson.train) or 1), None), lesson.train.names
        beside = (
            None
            if lesson.unlabelled is None or not method.adapts
            else next(lesson.unlabelled.batches(len(lesson.unlabelled)))
        )
        if images is None:
            images = Batch(beside.inputs.part(0, 0), torch.empty(0, dtype=torch.long), names) if beside else None
        if images is not None and any(p.requires_grad for p in method.parameters()):
            loop = Loop(method.train(), lesson, train, 1)
            batch = replace(images, unlabelled=beside)
            loop.gradients(batch)  # features are computed and layouts made
            with memory.Tracked() as tracked:
                loop.gradients(batch)
            began = time.perf_counter()
            loop.gradients(batch)
            step, held = time.perf_counter() - began, float(tracked.most)
        method.eval()
        with torch.no_grad(), memory.Tracked() as tracked:
            shown = images if images is not None and len(images.inputs) else beside
            prepared = method.prepare(names, method.fixed(names))
            began = time.perf_counter()
            if shown is not None:
                method(shown.inputs, prepared)
    return (
        held,
        step,
        float(tracked.most),
        (time.perf_counter() - began) / max(1, 0 if shown is None else len(shown.inputs)),
    )
