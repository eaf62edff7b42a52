"""Measure a step and a test of a few classes and items, by which the memory and the time of a run are estimated."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

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
from vlprompt.runtime.seeding import make_generator

MAX_GENERATED_TOKENS = 4  # of each text in a measured test; what more of them store is computed


class StoredBytes(NamedTuple):
    """What a run stores beside the tensors of its steps, in bytes of one item."""

    train_image: float  # decoded
    test_image: float  # decoded
    train_feature: float  # of one augmentation
    test_feature: float
    batch_pixels: float  # until the batch is done


class Measurement(NamedTuple):
    """A step and a test of all items at once."""

    step_bytes: float
    step_seconds: float
    test_bytes: float
    item_seconds: float  # of one test item
    recorded_text_bytes: float  # what recorded passes of texts (CUDA graphs) would keep
    replaced_text_bytes: float  # what the same passes take of step_bytes
    recorded_text_size: float  # of the largest of them, as a share of the largest that is recorded
    recorded_image_bytes: float  # the same of images
    replaced_image_bytes: float
    recorded_image_size: float
    divided_texts: float  # that processes would divide
    stored: StoredBytes


@dataclass
class _PassCounter(DividedPasses):
    """Computes whole what processes would divide, and counts its rows."""

    n_rows: int = 0

    def compute(self, n_rows: int, dim: int, compute_slice: Callable[[int, int], Tensor]) -> Tensor:
        self.n_rows += n_rows
        return compute_slice(0, n_rows)


def subsample_lesson(lesson: Lesson, classes: int, items: int, batch_size: int | None = None) -> Lesson:
    """Return a lesson of fewer classes, short names and long ones, and items, repeated where too few.

    Args:
        lesson: the whole lesson.
        classes: how many remain.
        items: how many remain. Texts are from the longest batch there is, as batches are of texts of similar length.
        batch_size: of the training; default: items.
    """
    names = lesson.train.names
    by_length = sorted(range(len(names)), key=lambda i: len(str(names[i])))
    chosen = [by_length[i * len(names) // classes] for i in range(classes)]

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


def measure_step_and_test(
    method: Method, lesson: Lesson, config: TrainConfig, test_items: Sequence[Item], max_new_tokens: int = 0
) -> Measurement:
    """Measure a step of a small lesson and a test.

    Args:
        method: built anew; it learns something.
        lesson: its items are the batch.
        config: of the training.
        test_items: all of them at once are the test; none: the items of the step.
        max_new_tokens: that are generated of each test text.
    """
    with torch.random.fork_rng():
        method.begin_lesson(lesson, make_generator(0))
        step, stored = _Step(), dict[str, float]()
        batch = build_batch(method, lesson, config)
        if batch is not None and any(p.requires_grad for p in method.parameters()):
            loop = Loop(method.train(), lesson, config, 1)
            with _recording_use(method) as used:
                step = _measure_step(loop, batch)
                _decode_augmented(method, lesson.train)
            n_items = batch.n_items
            stored = {"train_image": used.image / n_items, "train_feature": used.feature / n_items}
            stored["batch_pixels"] = sum(_stored_pixels(part) for part in (batch, batch.unlabelled)) / n_items
        items = test_items or lesson.train.items or (() if lesson.unlabelled is None else lesson.unlabelled.items)
        inputs = build_inputs(items, [None] * len(items)) if items else None
        method.eval()
        seconds, n_items = 0.0, max(1, len(items))
        with torch.no_grad(), memory.TensorMemoryTracker() as tracker, _recording_use(method) as used:
            prepared = method.prepare(lesson.train.names, method.precompute(lesson.train.names))
            start = time.perf_counter()
            if inputs is not None:
                method(inputs, prepared)
                if max_new_tokens and find_answer_kind(items) == "response":
                    limit = min(max_new_tokens, MAX_GENERATED_TOKENS)
                    generate_texts(method, inputs, f"task.max_new_tokens={max_new_tokens}", max_new_tokens=limit)
            seconds = time.perf_counter() - start
    stored |= {"test_image": used.image / n_items, "test_feature": used.feature / n_items}
    test_bytes = tracker.peak_bytes + n_items * _unmeasured_key_bytes(method, max_new_tokens)
    zeros = dict.fromkeys(StoredBytes._fields, 0.0)
    return Measurement(
        step.n_bytes,
        step.seconds,
        float(test_bytes),
        seconds / n_items,
        *step.recorded_texts,
        *step.recorded_images,
        step.divided_texts,
        StoredBytes(**(zeros | stored)),
    )


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
    recorded_texts: _Recorded = _Recorded()
    recorded_images: _Recorded = _Recorded()
    divided_texts: float = 0.0


def _measure_step(loop: Loop, batch: Batch) -> _Step:
    """Measure a step, after a first one that fills caches and layouts."""
    texts, images, counter = RecordedPassMeter(), RecordedPassMeter(), _PassCounter()
    with _metering_passes(loop.method, texts, images):
        loop.compute_gradients(batch)
        with torch.no_grad(), dividing(counter):
            loop.method.prepare(batch.names, loop.precompute(batch.names))
        with memory.TensorMemoryTracker() as tracker:
            loop.compute_gradients(batch)
        start = time.perf_counter()
        loop.compute_gradients(batch)
        seconds = time.perf_counter() - start
    recorded_texts, recorded_images = _Recorded.add_up(texts), _Recorded.add_up(images)
    return _Step(float(tracker.peak_bytes), seconds, recorded_texts, recorded_images, float(counter.n_rows))


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
