"""Continual learning: the training images come lesson by lesson, and after each all that was learned is tested.

Class-, domain- and task-incremental streams as van de Ven et al., Nature Machine Intelligence 2022 (arXiv:1904.07734),
tell them apart; without boundaries as in Wang et al., CVPR 2022, arXiv:2112.08654.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from vlprompt.core.batch import Split
from vlprompt.core.class_names import ids
from vlprompt.core.stage import Lesson, Stage
from vlprompt.data.dataset import Data
from vlprompt.data.splits.sampling import few_shot
from vlprompt.data.splits.streams import blurred, domains_of, grouped, kept, ordered
from vlprompt.metrics import OF_STREAM, of_stream
from vlprompt.tasks.few_shot import FewShot

Kind = Literal["class_incremental", "domain_incremental", "task_incremental", "task_free"]


class Continual(FewShot):
    """A dataset in lessons.

    kind: class_incremental (new classes each time, answers among all so far), domain_incremental (the same classes in
    another domain), task_incremental (new classes, answers among those of the image's task) or task_free (one pass,
    each image once, without boundaries: classes come and go in overlapping bumps). stages: how many lessons, or the ids
    of each one's classes (or domains); None: as the dataset has it. order: of classes or domains, where each stage's
    are told of the stages: "natural", "seeded" or all ids (of stages "1", "2" ...). seed: of that order, of the shots,
    of what is kept, of the training. joint: all lessons at once, as the upper bound. mask: whether training knows the
    classes of its lesson only (False: all so far). buffer: images of earlier lessons that are kept to be trained on
    again, equally many of each class. blur: of a task-free stream, how far the bumps reach into each other, in lengths
    of a part. with_val: whether the validation images are trained on too, as the literature does; False keeps them for
    train.select=val and for methods that search on them. shots: images of train per class, None for all; augment,
    skip_broken: as in FewShot.
    """

    def __init__(
        self,
        dataset: str | Data,
        stages: int | list[list[str]] | None = None,
        kind: Kind = "class_incremental",
        order: str | list[str] = "natural",
        seed: int = 1,
        joint: bool = False,
        mask: bool = True,
        buffer: int = 0,
        blur: float = 0.25,
        with_val: bool = True,
        shots: int | None = None,
        augment: str | None = None,
        skip_broken: bool = False,
    ):
        super().__init__(dataset, shots, seed, augment, skip_broken)
        self.stages_, self.kind, self.order, self.joint, self.mask = stages, kind, order, joint, mask
        self.buffer, self.blur, self.with_val = buffer, blur, with_val

    @cached_property
    def lesson(self) -> Lesson:
        """All that is taught, as one."""
        whole, val = self.data.train, self.data.val
        if not len(whole):
            raise ValueError(f"{self.dataset} is a test only and has no training images, so there is nothing to learn")
        if self.shots is not None:
            whole = few_shot(whole, None, self.shots, self.seed)[0]
        elif self.with_val and val is not None:
            whole = whole.plus(val)
        return Lesson(whole, None if self.with_val else val)

    @cached_property
    def every(self) -> list[str]:
        """The ids of what the stream is cut into: classes, or domains that are trained on."""
        if self.kind == "domain_incremental":
            return domains_of(self.lesson.train, self.dataset)
        return list(ids(self.lesson.train.names))

    @cached_property
    def groups(self) -> list[list[int]]:
        """Places in `every` of each task, in the order of the stream; ValueErrors for what can't be."""
        by_domain, wanted = self.kind == "domain_incremental", self.stages_
        what = "domains" if by_domain else "classes"
        if wanted is None:
            wanted = len(self.every) if by_domain else self.lesson.train.info.get("stages")
        if not isinstance(wanted, int | list | tuple):
            raise ValueError(f"{self.dataset} does not say how many stages it has; say so by task.stages=5")
        if (least := min(("buffer", self.buffer), ("blur", self.blur), key=lambda told: told[1]))[1] < 0:
            raise ValueError(f"task.{least[0]} is 0 or more, not {least[1]}")
        if self.buffer and (self.joint or self.kind == "task_free"):
            raise ValueError("task.buffer keeps images of earlier lessons, and here there is one lesson only")
        if by_domain and isinstance(wanted, int) and wanted != len(self.every):
            raise ValueError(f"task.stages is {wanted}, but {self.dataset} has the domains {', '.join(self.every)}")
        if isinstance(wanted, int):
            groups = grouped(self.every, wanted, ordered(self.every, self.order, self.seed, what), what)
        else:  # the classes of each are told, and the stages have an order
            every = [str(k) for k in range(1, len(wanted) + 1)]
            groups = grouped(self.every, wanted, [], what)
            groups = [groups[k] for k in ordered(every, self.order, self.seed, "stages")]
        there, tested = set(self._places(self.lesson.train)), set(self._places(self.data.test))
        for k, group in enumerate(groups, 1):
            named = f"stage {k} ({', '.join(self.every[i] for i in group)})"
            if not there & set(group):
                raise ValueError(f"{named} has no training image")
            if not tested & set(group) and (not by_domain or max(tested) >= 0):
                raise ValueError(f"{named} has no test image, so nothing would tell how well it was learned")
        return groups

    def _places(self, split: Split) -> Sequence[int]:
        """The place in `every` of each item's class or domain, -1 for a domain that is not trained on."""
        if self.kind != "domain_incremental":
            return split.labels
        names: Any = split.info["domains"]
        place = {i: self.every.index(str(name)) for i, name in enumerate(names) if str(name) in self.every}
        return [place.get(i, -1) for i in split.domains or ()]

    @property
    def _parts(self) -> dict[str, Split | None]:
        return {"train": self.lesson.train, "val": self.lesson.val, "test": self.data.test}

    @cached_property
    def _items(self) -> dict[str, list[list[int]]]:
        """Of train, val and test the places of the items of each task."""
        task = {place: k for k, group in enumerate(self.groups) for place in group}
        found = {part: [list[int]() for _ in self.groups] for part in self._parts}
        for part, split in self._parts.items():
            for i, place in enumerate(() if split is None else self._places(split)):
                if place in task:
                    found[part][task[place]].append(i)
        return found

    @property
    def common(self) -> bool:
        """Whether the test's domains are others than those of training, so that there is one test for all lessons."""
        return not any(self._items["test"])

    def _classes(self, tasks: Sequence[int]) -> list[int]:
        """The classes of these tasks, in order."""
        if self.kind == "domain_incremental":
            return list(range(len(self.lesson.train.names)))
        return [label for k in tasks for label in self.groups[k]]

    def _some(self, part: str, tasks: Sequence[int], classes: Sequence[int]) -> tuple[Split, list[int]]:
        """The items of these tasks among these classes, knowing nothing of any other; and the task of each."""
        split = self._parts[part]
        assert split is not None, "val is asked for where there is one"
        found = sorted((i, k) for k in tasks for i in self._items[part][k])
        some = split.of([i for i, _ in found]).classes(classes)
        return replace(some, domains=None, info={}), [k for _, k in found]

    def _val(self, tasks: Sequence[int], classes: Sequence[int]) -> Split | None:
        return None if self.lesson.val is None else self._some("val", tasks, classes)[0]

    def lessons(self) -> Iterator[Lesson]:
        """What is taught, one after another."""
        total = len(self.groups)
        every = self._classes(range(total))
        if self.joint or self.kind == "task_free":
            classes = every if self.joint else sorted(every)  # whose order tells nothing of the stream's
            whole, tasks = self._some("train", range(total), classes)
            whole = whole if self.joint else whole.of(blurred(tasks, self.blur, self.seed))
            yield Lesson(whole, self._val(range(total), classes), announced=self.joint)
            return
        memory: Split | None = None
        for k in range(total):
            names = self._classes([k] if self.mask else range(k + 1))
            train = self._some("train", [k], names)[0]
            yield Lesson(train, self._val([k], names), memory=memory or None, index=k, total=total)
            memory = kept(memory, train, self.buffer, self.seed) if self.buffer else None

    def _tests(self, tasks: Sequence[int]) -> dict[str, Split]:
        if self.common:
            return {"seen": replace(self.data.test, domains=None, info={})}
        if self.kind == "task_incremental":
            return {f"seen/{k}": self._some("test", [k], self._classes([k]))[0] for k in tasks}
        some, of = self._some("test", tasks, self._classes(tasks))  # its domains are the tasks
        return {"seen": replace(some, domains=tuple(of), info={"domains": [str(k) for k in range(len(self.groups))]})}

    def _alone(self, k: int) -> Split:
        """The test of task k just before its lesson."""
        own = self.kind == "task_incremental"
        return self._some("test", [k], self._classes([k] if own else range(k + 1)))[0]

    def stages(self) -> Iterator[Stage]:
        total = len(self.groups)
        for lesson in self.lessons():
            alone = lesson.total == 1 or self.common
            ahead = {} if alone or lesson.index + 1 == total else {"next": self._alone(lesson.index + 1)}
            before = {} if alone or lesson.index else {f"start {k}": self._alone(k) for k in range(1, total)}
            yield Stage(lesson, self._tests(range(total if lesson.total == 1 else lesson.index + 1)), ahead, before)

    @property
    def protocol(self) -> dict[str, Any]:
        alone = [k for k, group in enumerate(self.groups, 1) if len(group) == 1]
        by_class = self.kind in ("class_incremental", "task_incremental")
        masked = self.mask and not self.joint and not self.buffer and by_class
        warnings = []
        if masked and alone:
            some = ", ".join(map(str, alone[:5])) + " ..." * (len(alone) > 5)
            warnings.append(
                f"stage {some}: a class alone in its lesson has a cross-entropy of zero, so training learns nothing; "
                "say task.mask=false, or fewer stages"
            )
        many = len(self._classes(range(len(self.groups) - 1)))  # all of them where domains come
        if 0 < self.buffer < many:
            warnings.append(
                f"task.buffer={self.buffer} is less than one image for each of the {many} classes before the last "
                "lesson, so that nothing is rehearsed there"
            )
        more = len(self.lesson.train) > len(self.data.train)
        return {
            **super().protocol,
            "kind": self.kind,
            "stages": len(self.groups),
            "class_order": [[self.every[i] for i in group] for group in self.groups],
            "trained_on": "train+val" if more else "train",
            "warnings": warnings,
            "metrics": OF_STREAM,
        }

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        return of_stream(scores, [len(found) for found in self._items["test"]])
