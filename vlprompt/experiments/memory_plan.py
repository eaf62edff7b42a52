"""Plan a run's memory before it starts: what a step takes, and which exact settings make it fit.

A step and a test of a few classes and images are measured; what they hold is linear in either. Language models are not
planned: there train.micro_batch_size and train.activation_checkpointing are the user's choice.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import torch

from vlprompt.core.batch import Batch, Split
from vlprompt.core.compute_options import ComputeOptions
from vlprompt.core.introspection import apply_compute_options
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower, find_input_tower
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import TrainConfig
from vlprompt.runtime import memory
from vlprompt.runtime.seeding import make_generator

MAX_MEASURED_CLASSES, MEASURED_IMAGES = 40, (2, 4)
MIN_SIZE_TO_MEASURE = 2e9  # parameters x (classes + images at once) under which nothing is measured
TEST_BATCH_SIZE = 100  # images at once in a test, as evaluate has it
TEXT_MICRO_BATCHES = (256, 64, 16)  # to try
ALLOCATOR_OVERHEAD = 1.1  # what an allocator takes for each byte of tensors
GLIBC_OVERHEAD = (
    1.5  # the same where freed memory stays with glibc (memory.return_freed_memory), as measured: 1.5 to 1.8
)
FIRST_STEP_MB = 48.0  # what the first step takes for good
SLOWDOWN = {"activation_checkpointing": 1.4, "text_micro_batch": 1.6}  # of a step, as measured


@dataclass(frozen=True)
class CostModel:
    """constant + per_class * classes + per_image * images + per_class_and_image * classes * images."""

    constant: float
    per_class: float = 0.0
    per_image: float = 0.0
    per_class_and_image: float = 0.0

    def __call__(self, classes: float, images: float = 0.0) -> float:
        both = self.per_class_and_image * classes * images
        return self.constant + self.per_class * classes + self.per_image * images + both

    @classmethod
    def fit(cls, points: Mapping[tuple[int, int], float], min_constant: float = -math.inf) -> "CostModel":
        """Fit measured points; what would fall with classes or images is taken as constant.

        Args:
            points: (classes, images) -> value, at one or two numbers of classes and one or two of images.
            min_constant: of the constant.
        """
        (c1, *more_classes), (b1, *more_images) = (sorted({point[k] for point in points}) for k in (0, 1))
        c2, b2 = (more_classes or [c1 + 1])[0], (more_images or [b1 + 1])[0]

        def value(c: int, b: int) -> float:
            return points.get((c, b), points.get((c, b1), points.get((c1, b), points[c1, b1])))

        d = max(0.0, value(c2, b2) - value(c2, b1) - value(c1, b2) + value(c1, b1)) / ((c2 - c1) * (b2 - b1))
        b = max(0.0, (value(c2, b1) - value(c1, b1)) / (c2 - c1) - d * b1)
        c = max(0.0, (value(c1, b2) - value(c1, b1)) / (b2 - b1) - d * c1)
        return cls(max(min_constant, value(c1, b1) - b * c1 - c * b1 - d * c1 * b1), b, c, d)


@dataclass(frozen=True)
class MemoryPlan:
    """What a run takes, and the settings with which it fits.

    Args:
        peak_mb: at most (MB of the process, on a GPU of its memory).
        available_mb: what there is.
        seconds: of training and tests; 0 where nothing was measured.
        overrides: settings of training other than requested, with which it fits and learns the same numbers.
        requested_mb: the peak without them.
        tensor_mb: the tensors that a step or a test makes.
    """

    peak_mb: float
    available_mb: float
    seconds: float
    overrides: dict[str, Any] = field(default_factory=dict)
    requested_mb: float = 0.0
    tensor_mb: float = 0.0

    @property
    def fits(self) -> bool:
        return self.peak_mb <= self.available_mb

    def __str__(self) -> str:
        cost = f"{self.peak_mb / 1024:.2f} GB at most, {format_duration(self.seconds)}"
        if not self.overrides:
            return cost if self.fits else f"{cost}; there are {self.available_mb / 1024:.2f} GB, so it may not fit"
        settings = ", ".join(f"train.{k}={v}" for k, v in self.overrides.items())
        doubt = "" if self.fits else ", which may still not fit"
        sizes = f"{self.requested_mb / 1024:.2f} GB asked, {self.available_mb / 1024:.2f} there"
        return f"{sizes}: {settings} (the same numbers){doubt}; {cost}"


def format_duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def subsample_lesson(lesson: Lesson, classes: int, images: int) -> Lesson:
    """Return a lesson of fewer classes, short names and long ones, and images, repeated where too few."""
    names = lesson.train.names
    by_length = sorted(range(len(names)), key=lambda i: len(str(names[i])))
    chosen = [by_length[i * len(names) // classes] for i in range(classes)]

    def subsample(split: Split) -> Split:
        part = split.select_classes(chosen)
        part = part if len(part) else replace(split, labels=(0,) * len(split), names=part.names)
        return part.select([i % len(part) for i in range(images)]) if len(part) else part

    train, unlabelled = subsample(lesson.train), lesson.unlabelled
    if unlabelled is not None:
        items = tuple(unlabelled.items[i % len(unlabelled)] for i in range(images)) if len(unlabelled) else ()
        unlabelled = replace(unlabelled, items=items, names=train.names)
    val = None if lesson.val is None else subsample(lesson.val)
    return replace(lesson, train=train, val=val, unlabelled=unlabelled, memory=None)


def build_batch(method: Method, lesson: Lesson) -> Batch | None:
    """Return all items of a small lesson as one batch; None for a lesson without items."""
    unlabelled = None
    if lesson.unlabelled is not None and method.needs_unlabelled:
        unlabelled = next(lesson.unlabelled.batches(len(lesson.unlabelled)))
    batch = next(lesson.train.batches(len(lesson.train) or 1), None)
    if batch is None and unlabelled is not None:
        batch = Batch(unlabelled.inputs.slice(0, 0), torch.empty(0, dtype=torch.long), lesson.train.names)
    return None if batch is None else replace(batch, unlabelled=unlabelled)


def plan_memory(
    make_method: Callable[[], Method], lesson: Lesson, config: TrainConfig, n_test_images: int = 0
) -> MemoryPlan:
    """Plan training and testing a method: measure a small step and test, and choose settings that fit.

    Features are computed and cached as in a run.

    Args:
        make_method: builds the method anew.
        lesson: what it will train on.
        config: of the training, as requested.
        n_test_images: how many images will be tested.
    """
    method = make_method()
    backbone = method.backbone
    tower = None if backbone is None else find_input_tower(backbone)
    device = torch.device("cpu") if tower is None else tower.device
    used_mb = memory.measure_used(device)
    available_mb = memory.measure_available(device) + used_mb
    size = 0 if backbone is None else backbone.n_parameters * (len(lesson.train.names) + config.batch_size)
    if not isinstance(tower, VisionTower) or not (memory.has_limit() or size >= MIN_SIZE_TO_MEASURE):
        return MemoryPlan(used_mb, available_mb, 0.0)
    planner = _Planner(make_method, lesson, config, n_test_images, device, used_mb)
    requested = planner.estimate(planner.requested)
    if requested.peak_mb <= available_mb:
        return MemoryPlan(requested.peak_mb, available_mb, requested.seconds, tensor_mb=requested.tensor_mb)
    estimates = [(planner.estimate(settings), settings) for settings in planner.iter_alternatives(method)]
    fitting = [(cost, settings) for cost, settings in estimates if cost.peak_mb <= available_mb]
    if fitting:
        cost, settings = min(fitting, key=lambda pair: pair[0].seconds)
    else:
        cost, settings = min(estimates, key=lambda pair: pair[0].peak_mb)
    overrides = planner.get_overrides(settings)
    return MemoryPlan(cost.peak_mb, available_mb, cost.seconds, overrides, requested.peak_mb, cost.tensor_mb)


class _Settings(NamedTuple):
    """Settings of training that change its memory and none of its numbers."""

    micro_batch_size: int
    activation_checkpointing: bool
    text_micro_batch: int | None


class _Estimate(NamedTuple):
    peak_mb: float
    seconds: float
    tensor_mb: float


class _Measurement(NamedTuple):
    step_bytes: float
    step_seconds: float
    test_bytes: float  # of all images at once
    image_seconds: float  # of one test image


class _Costs(NamedTuple):
    step_bytes: CostModel
    step_seconds: CostModel
    test_bytes: CostModel
    image_seconds: CostModel


class _Planner:
    def __init__(
        self,
        make_method: Callable[[], Method],
        lesson: Lesson,
        config: TrainConfig,
        n_test_images: int,
        device: torch.device,
        used_mb: float,
    ) -> None:
        self.make_method, self.lesson = make_method, lesson
        self.config = config = config.for_lesson(lesson.index)
        self.n_test_images, self.device, self.used_mb = n_test_images, device, used_mb
        self.n_classes = len(lesson.train.names)
        n_images = len(lesson.train) or (0 if lesson.unlabelled is None else len(lesson.unlabelled))
        self.batch_size = min(config.batch_size, n_images)
        self.n_steps = config.count_steps(n_images)[2] if n_images and config.epochs else 0
        self.micro_batch_size = config.micro_batch_size or self.batch_size or TEST_BATCH_SIZE
        micro_batch_size = min(self.micro_batch_size, self.batch_size or self.micro_batch_size)
        self.requested = _Settings(micro_batch_size, config.activation_checkpointing, config.text_micro_batch)
        self._costs = {False: self._measure(activation_checkpointing=False)}

    def _measure(self, activation_checkpointing: bool) -> _Costs:
        config = replace(
            self.config,
            activation_checkpointing=activation_checkpointing,
            text_micro_batch=None,
            micro_batch_size=None,
        )
        first = min(self.n_classes, MAX_MEASURED_CLASSES // 2)
        class_counts = sorted({first, min(self.n_classes, 2 * first)})
        points = {
            (c, b): _measure_step_and_test(self.make_method(), subsample_lesson(self.lesson, c, b), config)
            for c, b in product(class_counts, MEASURED_IMAGES)
        }
        return _Costs(*(CostModel.fit({size: costs[k] for size, costs in points.items()}) for k in range(4)))

    def estimate(self, settings: _Settings) -> _Estimate:
        """Estimate the peak and the time of a run."""
        micro_batch_size, checkpointing, text_micro_batch = settings
        if checkpointing not in self._costs:
            self._costs[checkpointing] = self._measure(activation_checkpointing=True)
        costs = self._costs[checkpointing]
        classes = min(self.n_classes, text_micro_batch or self.n_classes)
        test_size = min(micro_batch_size if micro_batch_size < self.batch_size else TEST_BATCH_SIZE, self.n_test_images)
        step_bytes = costs.step_bytes(classes, micro_batch_size) if self.n_steps else 0.0
        test_bytes = costs.test_bytes(classes, test_size) if self.n_test_images else 0.0
        tensor_mb = max(step_bytes, test_bytes) / 2**20
        returns_memory = self.device.type == "cuda" or checkpointing or text_micro_batch
        overhead = ALLOCATOR_OVERHEAD if returns_memory else GLIBC_OVERHEAD
        step_seconds = self._estimate_step(micro_batch_size, checkpointing, classes < self.n_classes)
        seconds = self.n_steps * step_seconds + self.n_test_images * costs.image_seconds(self.n_classes, 1)
        return _Estimate(self.used_mb + FIRST_STEP_MB + overhead * tensor_mb, seconds, tensor_mb)

    def _estimate_step(self, micro_batch_size: int, checkpointing: bool, has_text_micro_batches: bool) -> float:
        """Return the seconds of a step."""
        if not self.batch_size:
            return 0.0
        slowdown = SLOWDOWN["activation_checkpointing"] if checkpointing else 1.0
        slowdown *= SLOWDOWN["text_micro_batch"] if has_text_micro_batches else 1.0
        n_micro_batches = -(-self.batch_size // micro_batch_size)
        return n_micro_batches * self._costs[False].step_seconds(self.n_classes, micro_batch_size) * slowdown

    def iter_alternatives(self, method: Method) -> Iterator[_Settings]:
        """Yield the settings that the method allows."""
        supported = _find_supported_settings(method)
        needs_whole_batch = any(getattr(part, "needs_whole_batch", False) for part in method.modules())
        checkpointing = self.config.activation_checkpointing
        text_micro_batches = TEXT_MICRO_BATCHES if "text_micro_batch" in supported else ()
        for settings in product(
            _iter_micro_batch_sizes(self.micro_batch_size, needs_whole_batch),
            {checkpointing, checkpointing or "activation_checkpointing" in supported},
            {self.config.text_micro_batch, *text_micro_batches},
        ):
            if settings[2] is None or settings[2] < self.n_classes:
                yield _Settings(*settings)

    def get_overrides(self, settings: _Settings) -> dict[str, Any]:
        """Return the settings that are not as requested."""
        requested = self.requested._replace(micro_batch_size=self.micro_batch_size)
        return {name: value for name, value in settings._asdict().items() if value != getattr(requested, name)}


def _iter_micro_batch_sizes(batch_size: int, needs_whole_batch: bool) -> Iterator[int]:
    while batch_size:
        yield batch_size
        batch_size = 0 if needs_whole_batch else batch_size // 2


def _find_supported_settings(method: Method) -> set[str]:
    """Return the memory settings that the method's towers support."""
    supported = set[str]()
    for name, options in (
        ("activation_checkpointing", ComputeOptions(activation_checkpointing=True)),
        ("text_micro_batch", ComputeOptions(text_micro_batch=16)),
    ):
        try:
            with apply_compute_options(method, options):
                supported.add(name)
        except ValueError:
            continue
    return supported


def _measure_step_and_test(method: Method, lesson: Lesson, config: TrainConfig) -> _Measurement:
    """Measure a step and a test of all images of a small lesson."""
    with torch.random.fork_rng():
        method.begin_lesson(lesson, make_generator(0))
        names, batch = lesson.train.names, build_batch(method, lesson)
        step_bytes = step_seconds = 0.0
        if batch is not None and any(p.requires_grad for p in method.parameters()):
            step_bytes, step_seconds = _measure_step(Loop(method.train(), lesson, config, 1), batch)
        method.eval()
        test_batch = batch if batch is None or len(batch.inputs) else batch.unlabelled
        with torch.no_grad(), memory.TensorMemoryTracker() as tracker:
            prepared = method.prepare(names, method.precompute(names))
            start = time.perf_counter()
            if test_batch is not None:
                method(test_batch.inputs, prepared)
    seconds = time.perf_counter() - start
    n_images = 0 if test_batch is None else len(test_batch.inputs)
    return _Measurement(step_bytes, step_seconds, float(tracker.peak_bytes), seconds / max(1, n_images))


def _measure_step(loop: Loop, batch: Batch) -> tuple[float, float]:
    """Return the bytes of tensors and the seconds of a step, after a first one that fills caches and layouts."""
    loop.compute_gradients(batch)
    with memory.TensorMemoryTracker() as tracker:
        loop.compute_gradients(batch)
    start = time.perf_counter()
    loop.compute_gradients(batch)
    return float(tracker.peak_bytes), time.perf_counter() - start
