"""Estimate the cost of runs beforehand: images and steps, and from a measured step hours and memory."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlprompt.config.run_config import RunConfig
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName, class_ids
from vlprompt.core.images import ImageItem, Images, Preprocessing
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Backbone
from vlprompt.data.dataset import Data
from vlprompt.data.loading import open_data
from vlprompt.data.splits.sampling import split_base_new
from vlprompt.engine.loop import Loop
from vlprompt.experiments.learned.prompt import build_run_method
from vlprompt.experiments.planning.bilinear_cost import CostModel
from vlprompt.runtime import memory
from vlprompt.runtime.paths import find_configs_folder
from vlprompt.runtime.seeding import make_generator

MEASURED_CLASSES = (10, 40)  # classes
TEST_IMAGES = 8  # test images at once when a test is measured


@dataclass(frozen=True)
class DatasetSize:
    """A dataset as far as costs depend on it.

    Args:
        classes: their number; 0 where it is not known.
        test_images: of the test split.
        train_counts: training images of each class; None for enough of them for any shots.
        names: ids of the classes.
        missing_reason: what is wrong with the data where they are not here to be counted.
    """

    classes: int
    test_images: int
    train_counts: tuple[int, ...] | None = None
    names: tuple[str, ...] = ()
    missing_reason: str = ""


def find_dataset_size(dataset: str) -> DatasetSize:
    """Count a dataset's images, or take configs/reference/datasets.yaml; 0 classes if neither is known."""
    import yaml

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of names alike; the run itself warns of them
            data: Data = open_data(dataset)
    except (ValueError, OSError) as error:
        path = find_configs_folder() / "reference" / "datasets.yaml"
        known = yaml.safe_load(path.read_text("utf-8")).get(Path(dataset).name, {"classes": 0, "test": 0})
        return DatasetSize(known["classes"], known["test"], missing_reason=str(error))
    train = data.train
    return DatasetSize(len(train.names), len(data.test), tuple(train.count_per_class()), class_ids(train.names))


@dataclass(frozen=True)
class Workload:
    """The workload of a run: training images, classes, steps, and (images, classes) of each of its tests."""

    images: int
    classes: int
    steps: int
    tests: tuple[tuple[int, int], ...]


def compute_workload(config: RunConfig, sizes: dict[str, DatasetSize], has_training: bool) -> Workload:
    """Compute what a configuration comes to.

    Base-to-new trains on a half and tests on both and on all classes; a transfer tests on several datasets.
    """
    task = config.task
    size, shots = sizes[task["dataset"]], task.get("shots")
    chosen, tests = list(range(size.classes)), [(size.test_images, size.classes)]
    if task["name"] == "base_to_new" and size.classes:
        known = task.get("base_classes") and size.names
        chosen = [size.names.index(i) for i in task["base_classes"]] if known else split_base_new(size.classes)[0]
        both = len(chosen), size.classes - len(chosen)
        tests += [(round(size.test_images * n / size.classes), n) for n in both]
    if task.get("unlabelled"):
        chosen = list(range(size.classes))
    tests += [(sizes[t].test_images, sizes[t].classes) for t in task.get("targets") or ()]
    counts = size.train_counts or (shots or 0,) * size.classes
    images = sum(counts[c] if shots is None else min(shots, counts[c]) for c in chosen)
    steps = config.train_config.for_lesson(0).count_steps(images)[2] if has_training and images else 0
    return Workload(images, len(chosen), steps, tuple(tests))


def _build_random_lesson(backbone: Backbone, classes: int, images: int) -> Lesson:
    """Build a lesson of random images with class names of two words."""
    names = tuple(ClassName(f"thing {i}", str(i), "a photo of a {name}.") for i in range(classes))

    def pixels(look: Preprocessing, view: object) -> torch.Tensor:
        return torch.rand(3, *look.size)

    items = tuple(ImageItem(f"random/{i}", pixels) for i in range(images))
    return Lesson(Split(items, tuple(i % classes for i in range(images)), names))


def _draw_random_images(images: int) -> Images:
    """Build a batch of random images without keys, so that no feature is cached."""
    return Images(
        lambda look, places: torch.rand(len(places), 3, *look.size),
        [None] * images,
        lambda augment, k: _draw_random_images(images),
    )


def has_trainable_parameters(config: dict[str, Any], backbone: Backbone) -> bool:
    """Return whether a method has trainable parameters."""
    method = build_run_method(config, backbone)
    lesson = _build_random_lesson(backbone, 2, 2)
    method.begin_lesson(replace(lesson, val=lesson.train), make_generator(0))
    return any(p.requires_grad for p in method.parameters())


@dataclass(frozen=True)
class MeasuredCosts:
    """Seconds per step, test preparation and test image, and peak MB, each linear in the number of classes."""

    step: CostModel
    prepare: CostModel
    image: CostModel
    peak_mb: CostModel

    def estimate_seconds(self, workload: Workload) -> float:
        tests = sum(self.prepare(classes) + images * self.image(classes) for images, classes in workload.tests)
        return workload.steps * self.step(workload.classes) + tests

    def estimate_megabytes(self, workload: Workload) -> float:
        return self.peak_mb(max([workload.classes, *(classes for _, classes in workload.tests)]))


def measure_costs(config: RunConfig, backbone: Backbone) -> MeasuredCosts:
    """Measure a step at the run's batch and micro-batch, and a test, at 10 and at 40 classes.

    Reading and decoding pictures is not in it, nor what is saved by features that are stored.
    """
    points = {(classes, 1): _measure_at_classes(config, backbone, classes) for classes in MEASURED_CLASSES}
    return MeasuredCosts(
        *(CostModel.fit({size: costs[k] for size, costs in points.items()}, min_constant=0.0) for k in range(4))
    )


def _measure_at_classes(config: RunConfig, backbone: Backbone, classes: int) -> tuple[float, float, float, float]:
    train, method = config.train_config, build_run_method(config.method, backbone)
    lesson = _build_random_lesson(backbone, classes, train.batch_size)
    memory.reset_peak(backbone.device)
    with torch.random.fork_rng():
        method.begin_lesson(replace(lesson, val=lesson.train), make_generator(0))
        step = 0.0
        if any(p.requires_grad for p in method.parameters()):
            method.train()
            loop = Loop(method, lesson, train, 1)

            def take() -> None:
                labels = torch.arange(train.batch_size) % classes
                loop.take_step(
                    Batch(_draw_random_images(train.batch_size), labels, lesson.train.names), train.warmup_lr
                )

            take()  # the first step prepares what later ones find
            step = _time_call(backbone, take)
        method.eval()
        with torch.no_grad():
            names, held = lesson.train.names, list[Any]()
            prepare = _time_call(backbone, lambda: held.append(method.prepare(names, method.precompute(names))))
            size = min(TEST_IMAGES, train.micro_batch_size or TEST_IMAGES)
            test = _time_call(backbone, lambda: method(_draw_random_images(size), held[0])) / size
    return step, prepare, test, memory.measure_peak(backbone.device)


def _time_call(backbone: Backbone, call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)
    return time.perf_counter() - began
