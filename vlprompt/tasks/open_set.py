"""Unknown classes: train on k images of known classes, test on them and against images of other classes.

A score says how well a test image is known; it separates known images from unknown ones. The unknown classes are
held-out ones of the dataset (near) or those of other datasets (far): Miyai et al., "LoCoOp: Few-Shot
Out-of-Distribution Detection via Prompt Learning", NeurIPS 2023, arXiv:2306.01293.
"""

import statistics
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, class_ids, normalize_name
from vlprompt.core.stage import Lesson, Stage
from vlprompt.data.dataset import Data
from vlprompt.data.loading import open_data
from vlprompt.data.sources import select_layout
from vlprompt.data.splits.label_noise import LabelNoise
from vlprompt.data.splits.sampling import split_base_new
from vlprompt.runtime.errors import suggest_nearest
from vlprompt.tasks.few_shot import FewShot

MAIN_METRICS = ("auroc", "fpr95")  # of each score, in the summary
OPEN_SET_METRICS = {
    "accuracy": "share right of the test images of the known classes, among the known classes",
    "auroc_SCORE": "auroc of a score (msp, maxlogit, energy, mcm, gl-mcm): mean over the sets of unknown images",
    "fpr95_SCORE": "fpr95 of a score: mean over the sets of unknown images",
}


class OpenSet(FewShot):
    """Train on k shots of the known classes; test on them, and against images of unknown classes.

    The shots are drawn from all classes and then restricted to the known ones, so that they equal FewShot's. The
    summary has the accuracy, and AUROC and FPR95 of each score as means over the sets of unknown images.

    Args:
        dataset: as in FewShot.
        unknown: where the unknown images are from: other datasets, or `dataset` itself for its other classes; None for
            the latter alone. A class name that is a known one is an error.
        known_classes: ids of the known classes; None for all classes, or for the first ceil(n / 2) where others of the
            dataset are unknown ones.
        keep_alike: keep unknown classes whose name has a known name in it, or the other way round, as whole words
            ("zero" and "digit zero"); by default they are left out and named in a warning.
        scores: of msp, maxlogit, energy, mcm and gl-mcm beside msp; None for all that the method has.
        shots: as in FewShot.
        seed: as in FewShot.
        augment: as in FewShot.
        skip_broken: as in FewShot.
        layout: as in FewShot, of those that are folders.
        unlabelled: as in FewShot: images of the known classes without their labels.
        noise: as in FewShot, among the known classes.
    """

    def __init__(
        self,
        dataset: str | Data,
        unknown: str | list[str] | None = None,
        known_classes: list[str] | None = None,
        keep_alike: bool = False,
        scores: list[str] | None = None,
        shots: int | None = 16,
        seed: int = 1,
        augment: str | None = None,
        skip_broken: bool = False,
        layout: str | None = None,
        unlabelled: bool = False,
        noise: LabelNoise | None = None,
    ):
        super().__init__(dataset, shots, seed, augment, skip_broken, layout, unlabelled, noise)
        self.unknown, self.known_classes, self.keep_alike, self.scores = unknown, known_classes, keep_alike, scores

    @cached_property
    def unknown_sources(self) -> list[str]:
        """The datasets of the unknown images; the dataset itself stands for its other classes."""
        sources = [self.unknown] if isinstance(self.unknown, str) else self.unknown or [self.dataset]
        if len(set(sources)) < len(sources):
            raise ValueError(
                f"task.unknown: expected different datasets, got {', '.join(sources)}. List each of them once."
            )
        return sources

    @cached_property
    def known(self) -> list[int]:
        """Labels of the known classes."""
        ids, has_near = class_ids(self.data.train.names), self.dataset in self.unknown_sources
        if self.known_classes is None:
            return split_base_new(len(ids))[0] if has_near else list(range(len(ids)))
        for class_id in self.known_classes:
            if class_id not in ids:
                hint = suggest_nearest(class_id, ids)
                raise ValueError(f"task.known_classes: expected class ids of {self.dataset}, got {class_id!r}; {hint}")
        known = [ids.index(class_id) for class_id in self.known_classes]
        if len(set(known)) < len(known) or len(known) < 2 or len(known) == len(ids) * has_near:
            raise ValueError(
                "task.known_classes: expected at least two different classes, with at least one left where classes of "
                f"the dataset are the unknown ones, got {self.known_classes}. Name others."
            )
        return known

    @cached_property
    def lesson(self) -> Lesson:
        train, val = self.training_images
        train = train.select_classes(self.known)
        if self.unlabelled:
            return self.hide_labels(train)
        return Lesson(self.add_noise(train), None if val is None else val.select_classes(self.known))

    @property
    def labelled_names(self) -> Names:
        return tuple(self.data.train.names[label] for label in self.known)

    @property
    def opened_data(self) -> list[Data]:
        return [self.data, *self.other_data.values()]

    @cached_property
    def other_data(self) -> dict[str, Data]:
        """The datasets of unknown images beside the own one."""
        others = (source for source in self.unknown_sources if source != self.dataset)
        return {s: open_data(s, None, self.skip_broken, layout=select_layout(self.layout, s)) for s in others}

    @cached_property
    def unknown_tests(self) -> tuple[dict[str, Split], list[str]]:
        """The images of unknown classes by dataset, and the names of the classes that were left out."""
        tests, left_out = dict[str, Split](), list[str]()
        for source in self.unknown_sources:
            own = source == self.dataset
            data = self.data if own else self.other_data[source]
            labels = [label for label in range(len(data.test.names)) if not own or label not in self.known]
            if not own:
                _require_other_names(self.labelled_names, data)
            alike = [] if own or self.keep_alike else find_alike(self.labelled_names, data.test.names)
            left_out += [str(data.test.names[label]) for label in alike]
            split = data.test.select_classes([label for label in labels if label not in alike])
            if not len(split):
                raise ValueError(
                    f"task.unknown: expected test images of unknown classes in {data.name!r}, got none. Name another "
                    "dataset, or set task.keep_alike=true where other classes have names like known ones."
                )
            tests[data.name] = split
        return tests, left_out

    @property
    def protocol(self) -> dict[str, Any]:
        (tests, left_out), protocol = self.unknown_tests, super().protocol
        names = ", ".join(map(repr, left_out[:5])) + " ..." * (len(left_out) > 5)
        warning = (
            f"{len(left_out)} unknown classes have names like known ones and are left out ({names}); "
            "task.keep_alike=true keeps them"
        )
        return {
            **protocol,
            "test": self.known_test.hash(),
            "known_classes": [*class_ids(self.labelled_names)],
            "unknown_items": {name: f"{len(split)} {split.hash()}" for name, split in tests.items()},
            "unknown_left_out": left_out,
            **({"warnings": [*protocol.get("warnings", []), warning]} if left_out else {}),
        }

    @cached_property
    def known_test(self) -> Split:
        """The test images of the known classes."""
        return self.data.test.select_classes(self.known)

    def stages(self) -> Iterator[Stage]:
        scores = () if self.scores is None else tuple(dict.fromkeys(["msp", *self.scores]))
        yield Stage(self.lesson, {"test": self.known_test}, unknown_tests=self.unknown_tests[0], unknown_scores=scores)

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        sets = [metrics for name, metrics in scores[-1].items() if name.startswith("unknown/")]
        names = [name for name in sets[0] if name.partition("_")[0] in MAIN_METRICS and "at_least" not in name]
        means = {name: statistics.fmean(metrics[name] for metrics in sets) for name in names}
        return {"accuracy": scores[-1]["test"]["accuracy"], **means}


def _require_other_names(known: Sequence[str], data: Data) -> None:
    """Raise ValueError where a class name of a dataset is a known one, case and underscores aside."""
    if shared := {normalize_name(name) for name in known} & {normalize_name(name) for name in data.test.names}:
        names = ", ".join(map(repr, sorted(shared)[:5])) + " ..." * (len(shared) > 5)
        raise ValueError(
            f"task.unknown: expected a dataset without the known classes, got {names} in {data.name!r}. Name a dataset "
            "whose classes are all others, or leave these classes out of task.known_classes."
        )


def find_alike(known: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the labels of names that have a known name in them, or are in one, as whole words."""
    words = [f" {normalize_name(name)} " for name in known]
    padded = [f" {normalize_name(name)} " for name in names]
    return [label for label, name in enumerate(padded) if any(word in name or name in word for word in words)]
