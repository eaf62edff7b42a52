"""Continual learning: train on one lesson after another, and test on all classes or domains so far after each.

Class-, domain- and task-incremental streams as defined by van de Ven et al., Nature Machine Intelligence 2022
(arXiv:1904.07734); streams without task boundaries as in Wang et al., CVPR 2022, arXiv:2112.08654.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from vlprompt.core.batch import Split
from vlprompt.core.class_names import class_ids
from vlprompt.core.stage import Lesson, Stage
from vlprompt.data.dataset import Data
from vlprompt.data.splits.sampling import sample_few_shot
from vlprompt.data.splits.streams import (
    BlurryClasses,
    blur_order,
    blur_stages,
    draw_blurry_classes,
    group_into_stages,
    list_stream_domains,
    resolve_order,
    update_memory,
)
from vlprompt.metrics import CONTINUAL_METRICS, continual_summary
from vlprompt.tasks.few_shot import FewShot

StreamKind = Literal["class_incremental", "domain_incremental", "task_incremental", "online", "si_blurry", "task_free"]
SINGLE_PASS_KINDS = ("online", "si_blurry", "task_free")


class Continual(FewShot):
    """A dataset presented as a sequence of lessons.

    Args:
        dataset: as in FewShot.
        stages: the number of stages, their sizes as "B50-10" (50 classes, then 10 each; "B0-10", "Bhalf-10"), or the
            ids of the classes (or domains) of each; None for the dataset's own.
        kind: class_incremental (new classes in each stage, predictions among all classes so far), domain_incremental
            (the same classes in another domain), task_incremental (new classes, predictions among those of the image's
            task), online (class_incremental, each image once), si_blurry (each image once, stages of drawn sizes, a
            share of the images of some classes in other stages; arXiv:2308.09303) or task_free (one pass without task
            boundaries: each image once, classes in overlapping bumps).
        order: of the classes or domains, or of the stages if these are lists ("1", "2" ...): "natural", "seeded",
            "pilot" (NumPy's permutation under seed 1993), "numpy-1996" of another seed, "icarl" or all ids.
        seed: of the order, the shots, the replay memory and the training.
        joint: train on all lessons at once, as the upper bound.
        mask: restrict training to the classes of the lesson; False for all classes so far.
        buffer: the capacity of the replay memory in images, equally many of each class.
        buffer_per_class: images of each earlier class in the replay memory, which then grows with the classes.
        blur: the overlap of the tasks of a task-free stream, as a standard deviation in task lengths.
        with_val: train on the validation images too, as the literature does; False reserves them for
            train.model_selection=val and for methods that search on them.
        disjoint_classes: of a si_blurry stream, the share of the classes that come in one stage only.
        blurred_images: of a si_blurry stream, the share of the other classes' images that come in other stages.
        phase: "search" is the stream of the first `search_lessons` lessons, tested on its validation images alone;
            "final" is the whole one.
        search_lessons: on how many of the first lessons the settings are searched; None where they are given.
        shots: training images per class, None for all.
        augment: as in FewShot.
        skip_broken: as in FewShot.
        layout: as in FewShot.
    """

    def __init__(
        self,
        dataset: str | Data,
        stages: int | str | list[list[str]] | None = None,
        kind: StreamKind = "class_incremental",
        order: str | list[str] = "natural",
        seed: int = 1,
        joint: bool = False,
        mask: bool = True,
        buffer: int = 0,
        buffer_per_class: int = 0,
        blur: float = 0.25,
        with_val: bool = True,
        disjoint_classes: float = 0.5,
        blurred_images: float = 0.1,
        phase: Literal["final", "search"] = "final",
        search_lessons: int | None = None,
        shots: int | None = None,
        augment: str | None = None,
        skip_broken: bool = False,
        layout: str | None = None,
    ):
        super().__init__(dataset, shots, seed, augment, skip_broken, layout)
        self.stages_, self.kind, self.order, self.joint, self.mask = stages, kind, order, joint, mask
        self.buffer, self.buffer_per_class, self.blur, self.with_val = buffer, buffer_per_class, blur, with_val
        self.disjoint_classes, self.blurred_images = disjoint_classes, blurred_images
        self.phase, self.search_lessons = phase, search_lessons
        if phase == "search":
            self._require_search()
            self.with_val = False

    def _require_search(self) -> None:
        if self.search_lessons is None or self.search_lessons < 1:
            raise ValueError(
                f"task.search_lessons: expected 1 or more for task.phase=search, got {self.search_lessons}. Set "
                "task.search_lessons=3."
            )
        if self.joint or self.kind == "task_free" or self.shots is not None:
            raise ValueError(
                "task.phase: expected a search on the first lessons of a stream with all of their images, got "
                "task.joint, task.kind=task_free or task.shots. Leave it out."
            )

    @cached_property
    def lesson(self) -> Lesson:
        """The training data of all stages as one lesson."""
        train, val = self.data.train, self.data.val
        if not len(train):
            raise ValueError(
                f"{self.dataset}: expected training images, got a dataset with a test split only. Choose another "
                "dataset."
            )
        if self.shots is not None:
            train = sample_few_shot(train, None, self.shots, self.seed)[0]
        elif self.with_val and val is not None:
            train = train.concat(val)
        return Lesson(train, None if self.with_val else val)

    @cached_property
    def unit_ids(self) -> list[str]:
        """The ids of the units that stages consist of: classes, or training domains."""
        if self.kind == "domain_incremental":
            return list_stream_domains(self.lesson.train, self.dataset)
        return list(class_ids(self.lesson.train.names))

    @cached_property
    def groups(self) -> list[list[int]]:
        """The indices into `unit_ids` of each task, in stream order.

        Raises:
            ValueError: for settings that do not fit the dataset, and a task without training or test images.
        """
        self._validate_memory()
        stages, what = self._resolve_stages(), "domains" if self.kind == "domain_incremental" else "classes"
        if isinstance(stages, int | str):
            order = resolve_order(self.unit_ids, self.order, self.seed, what)
            groups = group_into_stages(self.unit_ids, stages, order, what)
            if self.kind == "si_blurry":
                groups = self._draw_blurry_classes(order, len(groups)).groups
        else:  # the classes of each stage are listed, so that the order is one of stages
            stage_ids = [str(k) for k in range(1, len(stages) + 1)]
            groups = group_into_stages(self.unit_ids, stages, [], what)
            groups = [groups[k] for k in resolve_order(stage_ids, self.order, self.seed, "stages")]
        self._validate_groups(groups)
        return groups

    def _draw_blurry_classes(self, order: Sequence[int], n_stages: int) -> BlurryClasses:
        return draw_blurry_classes(order, n_stages, self.disjoint_classes, self.seed)

    @cached_property
    def blurry_classes(self) -> frozenset[int]:
        """The indices of the classes of a si_blurry stream whose images come in several stages."""
        order = resolve_order(self.unit_ids, self.order, self.seed, "classes")
        return self._draw_blurry_classes(order, len(self.groups)).blurry

    def _resolve_stages(self) -> int | str | Sequence[Sequence[str]]:
        by_domain, stages = self.kind == "domain_incremental", self.stages_
        if stages is None:
            stages = len(self.unit_ids) if by_domain else self.lesson.train.info.get("stages")
        if not isinstance(stages, int | str | list | tuple):
            raise ValueError(
                f"task.stages: expected a number or a list, got {stages!r}, and {self.dataset} has no number of its "
                "own. "
                "Set task.stages=5."
            )
        if self.kind == "si_blurry" and not isinstance(stages, int):
            raise ValueError(
                f"task.stages: expected a number for task.kind=si_blurry, which draws their sizes, got {stages!r}. Set "
                "task.stages=5."
            )
        if by_domain and isinstance(stages, int | str) and stages != len(self.unit_ids):
            raise ValueError(
                f"task.stages: expected {len(self.unit_ids)}, one for each domain of {self.dataset} "
                f"({', '.join(self.unit_ids)}), got {stages}. Set task.stages={len(self.unit_ids)}, or list the "
                "domains "
                "of each stage."
            )
        return stages

    def _validate_memory(self) -> None:
        for key in ("buffer", "buffer_per_class", "blur"):
            if not 0 <= (value := getattr(self, key)) < math.inf:
                raise ValueError(f"task.{key}: expected at least 0, got {value}. Set task.{key}=0 or more.")
        for key in ("disjoint_classes", "blurred_images"):
            if not 0 <= (value := getattr(self, key)) <= 1:
                raise ValueError(f"task.{key}: expected a share from 0 to 1, got {value}. Set task.{key}=0.5.")
        if self.buffer and self.buffer_per_class:
            raise ValueError(
                f"task.buffer: expected 0 with task.buffer_per_class={self.buffer_per_class}, got {self.buffer}. Set "
                "one of them."
            )
        if (self.buffer or self.buffer_per_class) and (self.joint or self.kind == "task_free"):
            raise ValueError(
                f"task.buffer: expected 0 for a stream of one lesson, which has no earlier images to replay, got "
                f"{self.buffer or self.buffer_per_class}. Set task.buffer=0 and task.buffer_per_class=0."
            )

    def _validate_groups(self, groups: list[list[int]]) -> None:
        """Raise ValueError for a task without training images, or without test images where tests are by task."""
        trained, tested = set(self._unit_indices(self.lesson.train)), set(self._unit_indices(self.data.test))
        needs_test = self.kind != "domain_incremental" or max(tested) >= 0
        for k, group in enumerate(groups, 1):
            label = f"stage {k} ({', '.join(self.unit_ids[i] for i in group)})"
            if not trained & set(group):
                raise ValueError(f"{label}: expected training images, got none. Set task.stages without it.")
            if not tested & set(group) and needs_test:
                raise ValueError(
                    f"{label}: expected test images, got none, so that its accuracy can't be measured. "
                    "Set task.stages without it."
                )

    def _unit_indices(self, split: Split) -> Sequence[int]:
        """Return the index in `unit_ids` of each item's class or domain, -1 for a domain without training images."""
        if self.kind != "domain_incremental":
            return split.labels
        names: Any = split.info["domains"]
        unit_by_domain = {
            domain: self.unit_ids.index(str(name)) for domain, name in enumerate(names) if str(name) in self.unit_ids
        }
        return [unit_by_domain.get(domain, -1) for domain in split.domains or ()]

    @property
    def _splits(self) -> dict[str, Split | None]:
        return {"train": self.lesson.train, "val": self.lesson.val, "test": self.data.test}

    @cached_property
    def _item_indices(self) -> dict[str, list[list[int]]]:
        """The indices of each task's items in train, val and test."""
        task_by_unit = {unit: task for task, group in enumerate(self.groups) for unit in group}
        indices = {split_name: [list[int]() for _ in self.groups] for split_name in self._splits}
        for split_name, split in self._splits.items():
            for i, unit in enumerate(() if split is None else self._unit_indices(split)):
                if unit in task_by_unit:
                    indices[split_name][task_by_unit[unit]].append(i)
        if self.kind == "si_blurry" and not self.joint:
            labels, blurry = self.lesson.train.labels, self.blurry_classes
            indices["train"] = blur_stages(indices["train"], labels, blurry, self.blurred_images, self.seed)
        return indices

    @property
    def has_shared_test(self) -> bool:
        """Whether the test has none of the training domains, so that all stages share one test."""
        return not any(self._item_indices["test"])

    def _class_labels(self, tasks: Sequence[int]) -> list[int]:
        """Return the classes of these tasks, in order."""
        if self.kind == "domain_incremental":
            return list(range(len(self.lesson.train.names)))
        return [label for task in tasks for label in self.groups[task]]

    def _select(self, split_name: str, tasks: Sequence[int], classes: Sequence[int]) -> tuple[Split, list[int]]:
        """Return the items of these tasks with only these class names, and the task of each item."""
        split = self._splits[split_name]
        assert split is not None, "val is selected only if there is one"
        indexed_tasks = [(i, task) for task in tasks for i in self._item_indices[split_name][task]]
        if self.kind != "si_blurry":  # whose images come in a drawn order
            indexed_tasks.sort()
        subset = split.select([i for i, _ in indexed_tasks]).select_classes(classes)
        return replace(subset, domains=None, info={}), [task for _, task in indexed_tasks]

    def _select_val(self, tasks: Sequence[int], classes: Sequence[int]) -> Split | None:
        return None if self.lesson.val is None else self._select("val", tasks, classes)[0]

    def lessons(self) -> Iterator[Lesson]:
        """Yield the lessons in stream order."""
        total = len(self.groups)
        all_classes = self._class_labels(range(total))
        if self.joint or self.kind == "task_free":
            # sorted, so that the order of the classes does not reveal the stream's
            classes = all_classes if self.joint else sorted(all_classes)
            train, tasks = self._select("train", range(total), classes)
            train = train if self.joint else train.select(blur_order(tasks, self.blur, self.seed))
            val = self._select_val(range(total), classes)
            yield Lesson(train, val, has_task_boundaries=self.joint, is_single_pass=self.kind in SINGLE_PASS_KINDS)
            return
        memory: Split | None = None
        for k in range(total):
            names = self._list_lesson_classes(k)
            train = self._select("train", [k], names)[0]
            yield Lesson(
                train,
                self._select_val([k], names),
                memory=memory or None,
                index=k,
                total=total,
                has_task_boundaries=self.kind != "si_blurry",
                is_single_pass=self.kind in SINGLE_PASS_KINDS,
            )
            if self.buffer or self.buffer_per_class:
                memory = update_memory(memory, train, self.buffer, self.seed, self.buffer_per_class)

    def _list_lesson_classes(self, stage: int) -> list[int]:
        """List the classes that a lesson names: its own, or all so far."""
        stages = [stage] if self.mask else range(stage + 1)
        if self.kind != "si_blurry":
            return self._class_labels(stages)
        labels, train = self.lesson.train.labels, self._item_indices["train"]
        present = {labels[i] for k in stages for i in train[k]}
        return [label for label in self._class_labels(range(len(self.groups))) if label in present]

    def _build_tests(self, tasks: Sequence[int]) -> dict[str, Split]:
        if self.has_shared_test:
            return {"seen": replace(self.data.test, domains=None, info={})}
        if self.kind == "task_incremental":
            return {f"seen/{k}": self._select("test", [k], self._class_labels([k]))[0] for k in tasks}
        # the tasks become the domains of the test, so that accuracy is reported by task
        test, task_indices = self._select("test", tasks, self._class_labels(tasks))
        info: dict[str, object] = {"domains": [str(k) for k in range(len(self.groups))]}
        return {"seen": replace(test, domains=tuple(task_indices), info=info)}

    def _stage_test(self, stage: int) -> Split:
        """Return the test of a stage's task just before its lesson."""
        tasks = [stage] if self.kind == "task_incremental" else range(stage + 1)
        return self._select("test", [stage], self._class_labels(tasks))[0]

    def _search_stages(self) -> Iterator[Stage]:
        """Yield the first lessons, with validation images of all classes so far as their only test."""
        if self.lesson.val is None or not len(self.lesson.val):
            raise ValueError(
                f"task.phase=search: expected validation images, got none in {self.dataset}. Cut some off, or "
                "search on another dataset."
            )
        for lesson in islice(self.lessons(), self.search_lessons):
            stages = range(lesson.index + 1)
            test = self._select("val", stages, self._class_labels(stages))[0]
            yield Stage(replace(lesson, val=None), {"val": test})

    def stages(self) -> Iterator[Stage]:
        if self.phase == "search":
            yield from self._search_stages()
            return
        total = len(self.groups)
        for lesson in self.lessons():
            is_single = lesson.total == 1 or self.has_shared_test
            ahead = {} if is_single or lesson.index + 1 == total else {"next": self._stage_test(lesson.index + 1)}
            before = {} if is_single or lesson.index else {f"start {k}": self._stage_test(k) for k in range(1, total)}
            tests = self._build_tests(range(total if lesson.total == 1 else lesson.index + 1))
            yield Stage(lesson, tests, ahead, before)

    @property
    def protocol(self) -> dict[str, Any]:
        warnings = []
        by_class = self.kind in ("class_incremental", "task_incremental", "online")
        single_class_stages = [k for k, group in enumerate(self.groups, 1) if len(group) == 1]
        has_memory = self.buffer or self.buffer_per_class
        if self.mask and not self.joint and not has_memory and by_class and single_class_stages:
            numbers = ", ".join(map(str, single_class_stages[:5])) + " ..." * (len(single_class_stages) > 5)
            warnings.append(
                f"stage {numbers}: nothing is learned, because the cross-entropy of a single class is zero; "
                "set task.mask=false, or fewer stages"
            )
        n_classes = len(self._class_labels(range(len(self.groups) - 1)))  # all classes in a stream of domains
        if 0 < self.buffer < n_classes:
            warnings.append(
                f"task.buffer={self.buffer}: nothing is replayed in the last lesson, because this is less than one "
                "image "
                f"for each of the {n_classes} classes before it; set task.buffer={n_classes} or more"
            )
        with_val = len(self.lesson.train) > len(self.data.train)
        return {
            **super().protocol,
            "kind": self.kind,
            "stages": len(self.groups),
            "class_order": [[self.unit_ids[i] for i in group] for group in self.groups],
            "trained_on": "train+val" if with_val else "train",
            **self._describe_blur(),
            "settings_chosen": self._describe_choice(),
            "warnings": warnings,
            "metrics": CONTINUAL_METRICS,
        }

    def _describe_choice(self) -> str:
        if self.search_lessons is None:
            return "given"
        return f"searched on validation images of the first {self.search_lessons} lessons"

    def _describe_blur(self) -> dict[str, Any]:
        if self.kind != "si_blurry" or self.joint:
            return {}
        return {"blurry_classes": sorted(self.unit_ids[i] for i in self.blurry_classes)}

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        if self.phase == "search":
            return dict(scores[-1]["val"])
        return continual_summary(scores, [len(indices) for indices in self._item_indices["test"]])
