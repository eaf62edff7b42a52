"""Measure a step and a test of a few classes and items, by which the memory and the time of a run are estimated."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlprompt.core.batch import Batch, Item, Split, build_inputs
from vlprompt.core.images import Augmentation, Images
from vlprompt.core.introspection import recording_towers
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import TextItem, find_answer_kind
from vlprompt.core.towers import (
    LanguageTower,
    VisionTower,
    find_feature_cache,
    find_input_tower,
    find_preprocessing,
)
from vlprompt.data.images.cache import IMAGE_CACHE
from vlprompt.engine.evaluate_text import generate_texts
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.blocks.cuda_graphs import RecordedPassMeter
from vlprompt.runtime import memory
from vlprompt.runtime.bounded_cache import BoundedCache
from vlprompt.runtime.divided_passes import DividedPasses, dividing
from vlprompt.runtime.seeding import capture_random_states, make_generator

MAX_GENERATED_TOKENS = 4  # of each text in a measured test; what more of them store is computed


class StoredBytes(NamedTuple):
    """What a run stores beside the tensors of its steps, in bytes of one item."""

    train_image: float  # decoded
    test_image: float  # decoded
    train_feature: float  # of one augmentation
    test_feature: float
    batch_pixels: float  # until the batch is done


class Measurement(NamedTuple):
    """A step and a test of some items at once."""

    step_bytes: float
    step_seconds: float
    test_bytes: float  # beside what was prepared
    prepare_bytes: float  # before a test
    item_seconds: float  # of one test item whose frozen feature is cached, where it has one
    cold_bytes: float  # of the first tests of items, which open the data and fill caches
    cold_seconds: float  # more of one item then
    state_bytes: float  # what the method makes when the lesson begins: prompts, buffers, copies of weights
    trained_bytes: float  # of its parameters
    recorded_text_bytes: float  # what recorded passes of texts (CUDA graphs) would keep
    replaced_text_bytes: float  # what the same passes take of step_bytes
    recorded_text_size: float  # of the largest of them, as a share of the largest that is recorded
    recorded_image_bytes: float  # the same of images
    replaced_image_bytes: float
    recorded_image_size: float
    divided_texts: float  # that processes would divide
    stored: StoredBytes
    draws: bool  # a step takes random numbers, as dropout does


@dataclass
class _PassCounter(DividedPasses):
    """Computes whole what processes would divide, and counts its rows."""

    fewest_rows: int = 0
    n_rows: int = 0

    def compute(self, n_rows: int, dim: int, compute_slice: Callable[[int, int], Tensor]) -> Tensor:
        self.n_rows += n_rows
        return compute_slice(0, n_rows)


def subsample_lesson(
    lesson: Lesson, classes: int, items: int, batch_size: int | None = None, n_slices: int = 1
) -> Lesson:
    """Return a lesson of fewer classes, short names and long ones, and items, repeated where too few.

    Args:
        lesson: the whole lesson.
        classes: how many remain.
        items: how many remain. Texts are from the longest batch there is, as batches are of texts of similar length.
        batch_size: of the training; default: items.
        n_slices: into which processes divide the classes, which are then of the slice with the longest names.
    """
    lengths = [len(str(name)) for name in lesson.train.names]
    bounds = [len(lengths) * k // n_slices for k in range(n_slices + 1)]
    longest = max(map(range, bounds, bounds[1:]), key=lambda part: sum(lengths[i] for i in part))
    by_length = sorted(longest, key=lambda i: lengths[i])
    step = (len(by_length) - 1) / max(1, classes - 1)  # the shortest, the longest and those between
    chosen = [by_length[-1 - round(i * step)] for i in reversed(range(classes))]

    def subsample(split: Split) -> Split:
        part = split.select_classes(chosen)
        part = part if len(part) else replace(split, labels=(0,) * len(split), names=part.names)
        return part.select(choose_items(part.items, items, batch_size)) if len(part) else part

    train, unlabelled = subsample(lesson.train), lesson.unlabelled
    if unlabelled is not None:
        images = tuple(unlabelled.items[i % len(unlabelled)] for i in range(items)) if len(unlabelled) else ()
        unlabelled = replace(unlabelled, items=images, names=train.names)
    val = None if lesson.val is None else subsample(lesson.val)
    return replace(lesson, train=train, val=val, unlabelled=unlabelled, memory=None)


def choose_items(items: Sequence[Item], n: int, batch_size: int | None = None) -> list[int]:
    """Return the indices of n items: the first images, or texts spread over the batch of the longest ones."""
    if not isinstance(items[0], TextItem):
        return [i % len(items) for i in range(n)]
    longest = sorted(range(len(items)), key=lambda i: -items[i].n_characters)[: max(n, batch_size or n)]
    return [longest[i * len(longest) // n] for i in range(n)]


def build_batch(method: Method, lesson: Lesson, config: TrainConfig | None = None) -> Batch | None:
    """Return all items of a small lesson as one batch; None for a lesson without items.

    Args:
        method: which needs unlabelled items or not.
        lesson: the small lesson.
        config: of a training, whose augmentations the items then have.
    """
    unlabelled = None
    if lesson.unlabelled is not None and method.needs_unlabelled:
        unlabelled = next(lesson.unlabelled.batches(len(lesson.unlabelled)))
    augmented = {} if config is None else {"seed": 0, "n_augmentations": config.augmentations, "shuffle": False}
    batch = next(lesson.train.batches(len(lesson.train) or 1, **augmented), None)
    if batch is None and unlabelled is not None:
        batch = Batch(unlabelled.inputs.slice(0, 0), torch.empty(0, dtype=torch.long), lesson.train.names)
    return None if batch is None else replace(batch, unlabelled=unlabelled)


def measure_steps_and_tests(
    method: Method,
    lesson: Lesson,
    config: TrainConfig,
    test_items: Sequence[Item],
    sizes: Sequence[int],
    max_new_tokens: int = 0,
) -> dict[int, Measurement]:
    """Measure a step and a test of each number of items; what is frozen is encoded once for all of them.

    Args:
        method: built anew; it learns something.
        lesson: its first items are the batches.
        config: of the training.
        test_items: the first of them are the tests; none: the items of the steps.
        sizes: numbers of items, ascending; the lesson has the last one.
        max_new_tokens: that are generated of each test text.
    """
    with torch.random.fork_rng():
        begun = _track(lambda: method.begin_lesson(lesson, make_generator(0)))
        trained = float(sum(p.nbytes for p in method.parameters() if p.requires_grad))
        loop = Loop(method.train(), lesson, config, 1) if trained else None
        with torch.no_grad():
            names = lesson.train.names
            frozen = _track(lambda: loop.precompute(names) if loop else method.precompute(names))
        steps, stored = dict.fromkeys(sizes, _Step()), dict.fromkeys(StoredBytes._fields, 0.0)
        if loop and (batch := build_batch(method, lesson, config)):
            with _recording_use(method) as used:
                steps = _measure_steps(loop, config, sizes)
                _decode_augmented(method, lesson.train)
            n_items = batch.n_items
            stored |= {"train_image": used.image / n_items, "train_feature": used.feature / n_items}
            stored["batch_pixels"] = sum(_stored_pixels(part) for part in (batch, batch.unlabelled)) / n_items
        items = test_items or lesson.train.items or (() if lesson.unlabelled is None else lesson.unlabelled.items)
        method.eval()
        with torch.no_grad(), _recording_use(method) as used:
            tests, counter = _measure_tests(method, lesson, frozen, items, sizes, max_new_tokens)
    n_items = max(1, len(items))
    stored |= {"test_image": used.image / n_items, "test_feature": used.feature / n_items}
    return {
        n: Measurement(
            steps[n].n_bytes,
            steps[n].seconds,
            *tests[n],
            float(begun.current_bytes),
            trained,
            *steps[n].texts,
            *steps[n].images,
            float(counter.n_rows),
            StoredBytes(**stored),
            steps[n].draws,
        )
        for n in sizes
    }


class _Tracked(NamedTuple):
    """What a call returned, and its tensors: at once, and those that stay."""

    value: Any
    peak_bytes: int
    current_bytes: int
    seconds: float


def _track(call: Callable[[], Any], device: torch.device | None = None) -> _Tracked:
    """Call, and count the tensors; on a GPU, where counting takes longer than computing, call again for the seconds."""
    with memory.TensorMemoryTracker() as tracker:
        start = time.perf_counter()
        value = call()
        seconds = time.perf_counter() - start - tracker.own_seconds
    tracked = _Tracked(value, tracker.peak_bytes, tracker.current_bytes, seconds)
    if device is None or device.type != "cuda":
        return tracked
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return tracked._replace(seconds=time.perf_counter() - start)


class _Recorded(NamedTuple):
    n_bytes: float = 0.0
    n_replaced_bytes: float = 0.0
    size: float = 0.0

    @classmethod
    def add_up(cls, meter: RecordedPassMeter) -> "_Recorded":
        sums = (
            float(sum(one.recorded_bytes for one in meter.passes)),
            float(sum(one.plain_bytes for one in meter.passes)),
        )
        return cls(*sums, max((one.size for one in meter.passes), default=0.0))


class _Step(NamedTuple):
    n_bytes: float = 0.0
    seconds: float = 0.0
    texts: _Recorded = _Recorded()
    images: _Recorded = _Recorded()
    draws: bool = False


def _measure_steps(loop: Loop, config: TrainConfig, sizes: Sequence[int]) -> dict[int, _Step]:
    """Measure steps of the first items of a loop's lesson, each after a forward pass that fills caches and layouts."""
    steps, differentiate = dict[int, _Step](), loop.differentiate
    for n in sizes:
        batch = build_batch(loop.method, _take_first(loop.lesson, n), config)
        texts, images = RecordedPassMeter(), RecordedPassMeter()
        if batch is None:
            continue
        with _metering_passes(loop.method, texts, images):
            loop.differentiate = lambda loss, inputs, **_: tuple(map(torch.zeros_like, inputs))
            loop.compute_gradients(batch)
            loop.differentiate = differentiate
            before = capture_random_states(loop.device)  # a method's own generator leaves them as they are
            tracked = _track(lambda batch=batch: loop.compute_gradients(batch) and None, loop.device)
        recorded = _Recorded.add_up(texts), _Recorded.add_up(images)
        draws = any(not torch.equal(before[k], after) for k, after in capture_random_states(loop.device).items())
        steps[n] = _Step(float(tracked.peak_bytes), tracked.seconds, *recorded, draws)
    return steps


def _take_first(lesson: Lesson, n: int) -> Lesson:
    """Return a lesson of the first n items, labelled and not."""
    unlabelled = lesson.unlabelled
    if unlabelled is not None:
        unlabelled = replace(unlabelled, items=unlabelled.items[:n])
    return replace(lesson, train=lesson.train.select(range(min(n, len(lesson.train)))), unlabelled=unlabelled)


class _Test(NamedTuple):
    n_bytes: float
    prepare_bytes: float
    item_seconds: float
    cold_bytes: float
    cold_seconds: float


def _measure_tests(
    method: Method, lesson: Lesson, frozen: _Tracked, items: Sequence[Item], sizes: Sequence[int], max_new_tokens: int
) -> tuple[dict[int, _Test], _PassCounter]:
    """Measure tests of the first items, and count the texts that processes would divide.

    Images are tested twice: what the first pass takes to fill caches is told apart, as it does not grow with a test.
    """
    names, counter = lesson.train.names, _PassCounter()

    def prepare() -> Any:
        with dividing(counter):
            return method.prepare(names, frozen.value)

    def test(items: Sequence[Item]) -> None:
        inputs = build_inputs(items, [None] * len(items))
        method(inputs, prepared.value)
        if max_new_tokens and find_answer_kind(items) == "response":
            limit = min(max_new_tokens, MAX_GENERATED_TOKENS)
            generate_texts(method, inputs, f"task.max_new_tokens={max_new_tokens}", max_new_tokens=limit)

    prepared, tests = _track(prepare), dict[int, _Test]()
    prepare_bytes = float(max(frozen.peak_bytes, frozen.current_bytes + prepared.peak_bytes))
    prepared_bytes = float(frozen.current_bytes + prepared.current_bytes)
    device = None if method.backbone is None else find_input_tower(method.backbone).device
    cold = _measure_cold_pass(method, items[: sizes[-1]], test)
    for n in sizes:
        n_bytes, seconds, part = prepared_bytes, 0.0, items[:n]
        if part:
            tracked = _track(lambda part=part: test(part), device)
            n_bytes, seconds = n_bytes + tracked.peak_bytes, tracked.seconds / len(part)
        n_bytes += len(part) * _unmeasured_key_bytes(method, max_new_tokens)
        tests[n] = _Test(n_bytes, prepare_bytes, seconds, prepared_bytes + cold.n_bytes, cold.item_seconds)
    return tests, counter


class _ColdPass(NamedTuple):
    n_bytes: float = 0.0
    item_seconds: float = 0.0


def _measure_cold_pass(method: Method, items: Sequence[Item], test: Callable[[Sequence[Item]], None]) -> _ColdPass:
    """Measure what encoding and caching images takes, one pass of the tower at a time; nothing where none is cached.

    The first item is a pass of its own, as it may open the data.
    """
    cache, backbone = find_feature_cache(method.backbone), method.backbone
    if cache is None or backbone is None or not items or isinstance(items[0], TextItem):
        return _ColdPass()
    opening, n_before = _track(lambda: test(items[:1])), cache.counts.misses
    cold = _track(lambda: test(items[1:] or items))
    n_bytes, n_computed = float(max(opening.peak_bytes, cold.peak_bytes)), cache.counts.misses - n_before
    if not n_computed:
        return _ColdPass(n_bytes)
    decoding = _track(lambda: items[-1].decode_once(find_preprocessing(backbone), None)).seconds
    pass_size = max(n_computed, getattr(find_input_tower(backbone), "pass_size", 1))
    return _ColdPass(n_bytes, decoding + max(0.0, cold.seconds - n_computed * decoding) / pass_size)


@contextmanager
def _metering_passes(method: Method, texts: RecordedPassMeter, images: RecordedPassMeter) -> Iterator[None]:
    """Run plainly what would be recorded, as its memory would stay after the measurement."""
    towers = recording_towers(method)
    graphs = [tower.cuda_graphs for tower in towers]
    try:
        for tower in towers:
            tower.cuda_graphs = images if isinstance(tower, VisionTower) else texts
        yield
    finally:
        for tower, before in zip(towers, graphs, strict=True):
            tower.cuda_graphs = before


@dataclass
class _Use:
    image: float = 0.0
    feature: float = 0.0


@contextmanager
def _recording_use(method: Method) -> Iterator[_Use]:
    """Yield the bytes of the decoded images and the features that are used in the with-block, filled in at its end."""
    use, cache = _Use(), find_feature_cache(method.backbone)
    recorded = cache.record_use() if isinstance(cache, BoundedCache) else nullcontext(dict[str, int]())
    with IMAGE_CACHE.record_use() as images, recorded as features:
        yield use
    use.image, use.feature = float(sum(images.values())), float(sum(features.values()))


def _decode_augmented(method: Method, split: Split) -> None:
    """Decode the images of a split with an augmentation, as steps do that find no features of this one."""
    if split.augment != "none" and method.backbone is not None and len(split):
        preprocessing = find_preprocessing(method.backbone)
        for item in split.items:
            item.decode_once(preprocessing, Augmentation(split.augment, 0))


def _stored_pixels(batch: Batch | None) -> int:
    return batch.inputs.stored_bytes if batch is not None and isinstance(batch.inputs, Images) else 0


def _unmeasured_key_bytes(method: Method, max_new_tokens: int) -> float:
    """Return the keys and values of the tokens of a text that a measured test does not generate."""
    tower = None if method.backbone is None else find_input_tower(method.backbone)
    n_tokens = max(0, max_new_tokens - MAX_GENERATED_TOKENS)
    if not isinstance(tower, LanguageTower) or not n_tokens:
        return 0.0
    return n_tokens * len(tower.prefix_layers) * 2 * tower.n_heads * tower.head_dim * 4


def mean_length(items: Iterable[Item]) -> float:
    """Return the mean characters of texts; 1 for images and where there are none."""
    lengths = [item.n_characters if isinstance(item, TextItem) else 1 for item in items]
    return max(1.0, sum(lengths) / max(1, len(lengths)))
