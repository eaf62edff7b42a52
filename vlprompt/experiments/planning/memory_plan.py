"""Plan a run's memory before it starts: what a step takes, and which settings make it fit and change no number.

A step and a test of a few classes and images or texts are measured; what they hold is linear in either. With several
processes all of it is said of each of them.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import torch

from vlprompt.core.batch import Split
from vlprompt.core.compute_options import DEFAULT_COMPUTE_OPTIONS, ComputeOptions
from vlprompt.core.introspection import apply_compute_options
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Backbone, LanguageTower, find_feature_cache, find_input_tower
from vlprompt.data.images.cache import IMAGE_CACHE
from vlprompt.engine.optimizers import count_state_copies
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.planning.bilinear_cost import CostModel
from vlprompt.experiments.planning.planned_memory import MemoryPlan
from vlprompt.experiments.planning.step_measurement import (
    Measurement,
    choose_items,
    mean_length,
    measure_steps_and_tests,
    subsample_lesson,
)
from vlprompt.runtime import distributed, memory
from vlprompt.runtime.bounded_cache import BoundedCache
from vlprompt.runtime.divided_passes import FEWEST_ROWS

MAX_MEASURED_CLASSES, MEASURED_ITEMS = 16, (1, 3)
MEASURED_WHOLE_BATCHES = 2, 4  # items, where a method normalises over the batch
MIN_SIZE_TO_MEASURE = 2e9  # parameters x (classes + items at once) under which nothing is measured
TEST_BATCH_SIZE = 100  # items at once in a test, as evaluate has it
TEXT_MICRO_BATCHES = (256, 64, 16)  # to try
ALLOCATOR_OVERHEAD = 1.1  # what an allocator takes for each byte of tensors
GLIBC_OVERHEAD = (
    1.5  # the same where freed memory stays with glibc (memory.return_freed_memory), as measured: 1.5 to 1.8
)
MAX_GLIBC_MB = 450.0  # of that, beyond ALLOCATOR_OVERHEAD: tensors above 32 MB, as large steps have, never stay
RECOMPUTING_MB = 155.0  # what torch imports for the first recomputation in a process (torch._dynamo), as measured
FIRST_STEP_MB = 48.0  # what the first step takes for good
TEXT_MICRO_BATCH_SLOWDOWN = 1.6  # of a step, as measured
GATHERED_COPIES = 5  # of divided features and their gradients, while they are summed over the processes


def plan_memory(
    make_method: Callable[[], Method], lesson: Lesson, config: TrainConfig, tests: Sequence[Split] = ()
) -> MemoryPlan:
    """Plan training and testing a method: measure a small step and test, and choose settings that fit.

    Features are computed and cached as in a run. Of several processes, all of which must call it, the first one
    measures, and the plan is of the one that has least.

    Args:
        make_method: builds the method anew.
        lesson: what it will train on.
        config: of the training, as requested.
        tests: what will be tested.
    """
    method = make_method()
    backbone = method.backbone
    tower = None if backbone is None else find_input_tower(backbone)
    device = torch.device("cpu") if tower is None else tower.device
    used_mb = memory.measure_used(device)
    everywhere = distributed.all_gather((used_mb, memory.measure_available(device) + used_mb))
    used_mb, available_mb = max(used for used, _ in everywhere), min(available for _, available in everywhere)
    size = 0 if backbone is None else backbone.n_parameters * (len(lesson.train.names) + config.batch_size)
    n_processes = distributed.get_world_size()

    def plan() -> MemoryPlan:
        if backbone is None or not (memory.has_limit() or size >= MIN_SIZE_TO_MEASURE):
            return MemoryPlan(used_mb, available_mb, 0.0)
        with distributed.as_single_process(), _unchanged_notes(backbone):
            planner = _Planner(make_method, backbone, lesson, config, tests, used_mb, n_processes)
            return planner.choose(method, available_mb)

    return distributed.broadcast_from_main(plan)


@contextmanager
def _unchanged_notes(backbone: Backbone) -> Iterator[None]:
    """Leave out of the result what a language model notes of measured texts; the run notes it of its own."""
    notes = backbone.notes if isinstance(backbone, LanguageTower) else {}
    before = dict(notes)
    try:
        yield
    finally:
        notes.clear()
        notes.update(before)


class _Settings(NamedTuple):
    """Settings of training that change its memory and none of its numbers."""

    micro_batch_size: int
    activation_checkpointing: bool
    text_micro_batch: int | None


class _Estimate(NamedTuple):
    peak_mb: float
    seconds: float
    tensor_mb: float
    state_mb: float


class _Planner:
    def __init__(
        self,
        make_method: Callable[[], Method],
        backbone: Backbone,
        lesson: Lesson,
        config: TrainConfig,
        tests: Sequence[Split],
        used_mb: float,
        n_processes: int,
    ) -> None:
        self.make_method, self.backbone, self.lesson, self.used_mb = make_method, backbone, lesson, used_mb
        self.device = find_input_tower(backbone).device
        self.config = config = config.for_lesson(lesson.index)
        self.n_processes, self.n_classes = n_processes, len(lesson.train.names)
        self.test_items = [item for test in tests for item in test.items]
        limits = (test.info.get("max_new_tokens", 0) for test in tests)
        self.max_new_tokens = max((limit for limit in limits if isinstance(limit, int)), default=0)
        self.n_items = len(lesson.train) or (0 if lesson.unlabelled is None else len(lesson.unlabelled))
        self.whole_batch_size = min(config.batch_size, self.n_items)
        self.batch_size = -(-self.whole_batch_size // n_processes)  # of each process
        _, self.n_epochs, self.n_steps = config.count_steps(self.n_items) if self.batch_size else (0, 0, 0)
        self.n_steps = self.n_steps if config.epochs else 0
        self.micro_batch_size = config.micro_batch_size or self.batch_size or TEST_BATCH_SIZE
        micro_batch_size = min(self.micro_batch_size, self.batch_size or self.micro_batch_size)
        self.requested = _Settings(micro_batch_size, config.activation_checkpointing, config.text_micro_batch)
        cache = find_feature_cache(backbone)
        self.feature_room, self.image_room = (  # bytes, of what used_mb does not contain
            max(0, one.max_bytes - one.used_bytes) if isinstance(one, BoundedCache) else 0
            for one in (cache, IMAGE_CACHE)
        )
        self._recomputing_mb = 0.0 if self.device.type == "cuda" or "torch._dynamo" in sys.modules else RECOMPUTING_MB
        self._costs, requested = dict[bool, dict[str, CostModel]](), config.activation_checkpointing
        self._costs[requested], self._measured = self._measure(requested)
        self.stored_mb = self._estimate_stored()
        small = subsample_lesson(lesson, self.n_classes, MEASURED_ITEMS[-1], self.batch_size).train.items
        self.length_share = mean_length(lesson.train.items) / mean_length(small)

    def choose(self, method: Method, available_mb: float) -> MemoryPlan:
        """Choose the fastest settings that fit, or those that take least where none does."""
        requested = self.estimate(self.requested)
        if requested.peak_mb <= available_mb:
            parts = requested.tensor_mb, self.stored_mb, requested.state_mb
            return MemoryPlan(requested.peak_mb, available_mb, requested.seconds, {}, 0.0, *parts)
        cost, settings = self._find_best(self.iter_alternatives(method), available_mb)
        overrides, parts = self.get_overrides(settings), (cost.tensor_mb, self.stored_mb, cost.state_mb)
        plan = MemoryPlan(cost.peak_mb, available_mb, cost.seconds, overrides, requested.peak_mb, *parts, self.used_mb)
        if plan.fits or not self._measured.draws:
            return plan
        cost, settings = self._find_best(self.iter_alternatives(method, changes_draws=True), available_mb)
        told = self.get_overrides(settings) if cost.peak_mb < plan.peak_mb else {}
        return replace(plan, inexact_mb=cost.peak_mb, inexact_overrides=told)

    def _find_best(self, alternatives: Iterable[_Settings], available_mb: float) -> tuple[_Estimate, _Settings]:
        """Return the fastest settings that fit, or those that take least where none does."""
        alternatives = list(alternatives)
        for settings in alternatives:
            self._get_costs(settings.activation_checkpointing)  # measuring may import what then stays
        estimates = [(self.estimate(settings), settings) for settings in alternatives]
        fitting = [(cost, settings) for cost, settings in estimates if cost.peak_mb <= available_mb]
        if fitting:
            return min(fitting, key=lambda pair: pair[0].seconds)
        return min(estimates, key=lambda pair: pair[0].peak_mb)

    def _measure(self, activation_checkpointing: bool) -> tuple[dict[str, CostModel], Measurement]:
        """Return the cost of each field of a measurement, and the largest one."""
        config = replace(
            self.config,
            activation_checkpointing=activation_checkpointing,
            text_micro_batch=None,
            micro_batch_size=None,
        )
        first = min(self.n_classes, MAX_MEASURED_CLASSES // 2)
        class_counts = sorted({first, min(self.n_classes, 2 * first)})
        points = dict[tuple[int, int], Measurement]()
        for c in class_counts:
            method = self.make_method()
            sizes = MEASURED_WHOLE_BATCHES if _needs_whole_batch(method) else MEASURED_ITEMS
            lesson = subsample_lesson(self.lesson, c, sizes[-1], self.batch_size, self._count_slices())
            chosen = choose_items(self.test_items, sizes[-1], TEST_BATCH_SIZE) if self.test_items else []
            test_items = [self.test_items[i] for i in chosen]
            found = measure_steps_and_tests(method, lesson, config, test_items, sizes, self.max_new_tokens)
            points |= {(c, n): one for n, one in found.items()}
        if activation_checkpointing:  # the measured steps have imported it
            self.used_mb, self._recomputing_mb = self.used_mb + self._recomputing_mb, 0.0
        names = (name for name in Measurement._fields if name not in ("stored", "draws"))
        costs = {name: CostModel.fit({size: getattr(one, name) for size, one in points.items()}) for name in names}
        return costs, points[max(points)]

    def _get_costs(self, activation_checkpointing: bool) -> dict[str, CostModel]:
        if activation_checkpointing not in self._costs:
            self._costs[activation_checkpointing], _ = self._measure(activation_checkpointing)
        return self._costs[activation_checkpointing]

    def estimate(self, settings: _Settings) -> _Estimate:
        """Estimate the peak and the time of a run."""
        micro_batch_size, checkpointing, text_micro_batch = settings
        costs = self._get_costs(checkpointing)
        classes, own = (min(n, text_micro_batch or n) for n in (self.n_classes, self._count_own_classes(settings)))
        n_test = len(self.test_items)
        test_size = min(micro_batch_size if micro_batch_size < self.batch_size else TEST_BATCH_SIZE, n_test)
        step_bytes = costs["step_bytes"](classes, micro_batch_size, own) if self.n_steps else 0.0
        test_bytes = costs["test_bytes"](classes, test_size) if n_test else 0.0
        test_bytes = max(test_bytes, costs["prepare_bytes"](classes) if n_test else 0.0)
        test_bytes = max(test_bytes, costs["cold_bytes"](self.n_classes))
        tensor_mb = max(step_bytes, test_bytes) / 2**20
        recorded, replaced = self._estimate_recorded(settings, own)
        state_bytes, saved_bytes, summed_bytes = self._estimate_state(settings)
        step_bytes += summed_bytes
        most_bytes = max(step_bytes, saved_bytes, recorded + max(step_bytes - replaced, test_bytes))
        most_bytes += self._estimate_gathered(settings)
        returns_memory = self.device.type == "cuda" or checkpointing or text_micro_batch
        held_mb = most_bytes / 2**20
        freed_mb = 0.0 if returns_memory else min(MAX_GLIBC_MB, (GLIBC_OVERHEAD - ALLOCATOR_OVERHEAD) * held_mb)
        held_mb = ALLOCATOR_OVERHEAD * held_mb + state_bytes / 2**20
        recomputing_mb = self._recomputing_mb if text_micro_batch else 0.0
        peak_mb = self.used_mb + recomputing_mb + FIRST_STEP_MB + held_mb + freed_mb + self.stored_mb
        seconds = self.n_steps * self._estimate_step(settings)
        seconds += n_test / self.n_processes * costs["item_seconds"](self.n_classes, 1)
        n_cold = n_test + (self.n_items * self._count_views() if self.n_steps else 0)
        seconds += n_cold / self.n_processes * costs["cold_seconds"](self.n_classes)
        return _Estimate(peak_mb, seconds, tensor_mb, state_bytes / 2**20)

    def _estimate_state(self, settings: _Settings) -> tuple[float, float, float]:
        """Return the bytes that stay between steps, a copy of them to save, and the gradients of micro-batches."""
        costs, n_copies = self._get_costs(settings.activation_checkpointing), count_state_copies(self.config)
        begun, trained = (costs[name](self.n_classes) for name in ("state_bytes", "trained_bytes"))
        if not self.n_steps:
            return begun, 0.0, 0.0
        summed = trained if settings.micro_batch_size < self.batch_size else 0.0
        return begun + (1 + n_copies) * trained, (1 + n_copies) * trained, summed

    def _count_own_classes(self, settings: _Settings) -> int:
        """Return the classes whose texts one process encodes in a step."""
        is_divided = settings.micro_batch_size >= self.batch_size and self._measured.divided_texts > 0
        return -(-self.n_classes // self._count_slices()) if is_divided else self.n_classes

    def _count_slices(self) -> int:
        """Return into how many slices the processes of a step would divide the texts of the classes."""
        divides = self.n_processes <= self.whole_batch_size and self.n_classes >= FEWEST_ROWS * self.n_processes
        return self.n_processes if divides else 1

    def _estimate_gathered(self, settings: _Settings) -> float:
        """Return the bytes of the features that processes sum."""
        is_divided = self._count_own_classes(settings) < self.n_classes
        return GATHERED_COPIES * 4.0 * self.n_classes * self.backbone.feature_dim if is_divided else 0.0

    def _estimate_recorded(self, settings: _Settings, own_classes: int) -> tuple[float, float]:
        """Return the bytes that recorded passes (CUDA graphs) keep, and those of a step that they replace."""
        options = self.config.compute_options
        changes = {name: getattr(settings, name) for name in ("activation_checkpointing", "text_micro_batch")}
        if replace(options, **changes) != DEFAULT_COMPUTE_OPTIONS:
            return 0.0, 0.0
        costs, recorded, replaced = self._get_costs(False), 0.0, 0.0
        for inputs in ("text", "image"):
            sizes = self.n_classes, settings.micro_batch_size, own_classes
            if 0 < costs[f"recorded_{inputs}_size"](*sizes) <= 1:
                recorded += self._sum_batch_sizes(costs[f"recorded_{inputs}_bytes"], settings, own_classes)
                replaced += costs[f"replaced_{inputs}_bytes"](*sizes)
        return recorded, replaced

    def _sum_batch_sizes(self, cost: CostModel, settings: _Settings, own_classes: int) -> float:
        """Return what passes of all sizes keep: those of a smaller last batch are recorded beside the others."""
        whole = cost(self.n_classes, settings.micro_batch_size, own_classes)
        if not cost.per_image and not cost.per_class_and_image:
            return whole
        sizes = self._find_batch_sizes(settings.micro_batch_size) - {settings.micro_batch_size}
        return whole + sum(cost(self.n_classes, size, own_classes) for size in sizes)

    def _find_batch_sizes(self, micro_batch_size: int) -> set[int]:
        """Return the sizes of the micro-batches of an epoch."""
        last = 0 if self.config.drop_last or not self.batch_size else self.n_items % self.whole_batch_size
        last = -(-last // self.n_processes)
        batches = {self.batch_size, last} - {0}
        return ({min(b, micro_batch_size) for b in batches} | {b % micro_batch_size for b in batches}) - {0}

    def _estimate_stored(self) -> float:
        """Return the MB of decoded images, of features and of the pixels of a batch, beside the tensors of a step."""
        stored, n_train, n_test = self._measured.stored, self.n_items, len(self.test_items)
        features = n_train * self._count_views() * stored.train_feature + n_test * stored.test_feature
        stored_bytes = min(features, self.feature_room)
        if self.device.type != "cuda":
            images = n_train * stored.train_image + n_test * stored.test_image
            stored_bytes += min(images, self.image_room)
            stored_bytes += 2 * self.batch_size * stored.batch_pixels  # the next batch is decoded beside it
        return stored_bytes / 2**20

    def _count_views(self) -> int:
        """Return the augmentations in which the run sees an image."""
        if self.lesson.train.augment == "none" or not self.n_steps:
            return 1
        return min(self.n_epochs, self.config.augmentations or self.n_epochs) or 1

    def _estimate_step(self, settings: _Settings) -> float:
        """Return the seconds of a step."""
        if not self.batch_size:
            return 0.0
        own = self._count_own_classes(settings)
        slowdown = TEXT_MICRO_BATCH_SLOWDOWN if (settings.text_micro_batch or own) < own else 1.0
        n_micro_batches = -(-self.batch_size // settings.micro_batch_size)
        one = self._get_costs(settings.activation_checkpointing)["step_seconds"](
            self.n_classes, settings.micro_batch_size, own
        )
        return n_micro_batches * one * slowdown * self.length_share

    def iter_alternatives(self, method: Method, changes_draws: bool = False) -> Iterator[_Settings]:
        """Yield the settings that the method allows, with those that change what dropout draws or without.

        Micro-batches of images or texts draw one after the other what the whole draws at once; what is recomputed in
        the backward pass draws the same again.
        """
        saves = GLIBC_OVERHEAD * self.estimate(self.requested).tensor_mb > self._recomputing_mb
        supported = _find_supported_settings(method) if saves else set[str]()
        is_whole = self._measured.draws and not changes_draws
        checkpointing = self.config.activation_checkpointing
        text_micro_batches = TEXT_MICRO_BATCHES if "text_micro_batch" in supported and not is_whole else ()
        for settings in product(
            _iter_micro_batch_sizes(self.micro_batch_size, is_whole or _needs_whole_batch(method)),
            {checkpointing, checkpointing or "activation_checkpointing" in supported},
            {self.config.text_micro_batch, *text_micro_batches},
        ):
            if settings[2] in (None, self.config.text_micro_batch) or settings[2] < self.n_classes:
                yield _Settings(*settings)

    def get_overrides(self, settings: _Settings) -> dict[str, Any]:
        """Return the settings that are not as requested."""
        requested = self.requested._replace(micro_batch_size=self.micro_batch_size)
        return {name: value for name, value in settings._asdict().items() if value != getattr(requested, name)}


def _needs_whole_batch(method: Method) -> bool:
    return any(getattr(part, "needs_whole_batch", False) for part in method.modules())


def _iter_micro_batch_sizes(batch_size: int, is_whole: bool) -> Iterator[int]:
    while batch_size:
        yield batch_size
        batch_size = 0 if is_whole else batch_size // 2


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
