"""Base-to-new generalisation: train on half of the classes, test on each half separately.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557.
"""

from collections.abc import Iterator
from functools import cached_property

from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.stage import Lesson, Stage
from vlprompt.data.dataset import Data
from vlprompt.data.splits.label_noise import LabelNoise
from vlprompt.data.splits.sampling import split_base_new
from vlprompt.metrics import harmonic_mean
from vlprompt.tasks.few_shot import FewShot


class BaseToNew(FewShot):
    """Train on k shots of the base classes; test within each half, and over all classes at once (joint).

    The shots are drawn from all classes and then restricted to the base classes, as in the literature, so that they
    equal FewShot's.

    Args:
        dataset: as in FewShot.
        shots: as in FewShot.
        seed: as in FewShot.
        base_classes: ids of the base classes; None for the first ceil(n / 2).
        augment: as in FewShot.
        skip_broken: as in FewShot.
        layout: as in FewShot.
        base_only: test on the base classes alone, as suits methods that can't classify new classes.
        unlabelled: as in FewShot: images of the new classes too are learned from, and no labels at all.
        noise: as in FewShot, among the base classes.
    """

    seen_classes_hint = "Set task.base_only=true for the accuracy on the base classes alone."

    def __init__(
        self,
        dataset: str | Data,
        shots: int | None = 16,
        seed: int = 1,
        base_classes: list[str] | None = None,
        augment: str | None = None,
        skip_broken: bool = False,
        layout: str | None = None,
        base_only: bool = False,
        unlabelled: bool = False,
        noise: LabelNoise | None = None,
    ):
        super().__init__(dataset, shots, seed, augment, skip_broken, layout, unlabelled, noise)
        self.base_classes, self.base_only = base_classes, base_only

    @cached_property
    def base_and_new(self) -> tuple[list[int], list[int]]:
        """Labels of the base and of the new classes."""
        ids = class_ids(self.data.train.names)
        if self.base_classes is None:
            return split_base_new(len(ids))
        if unknown := [class_id for class_id in self.base_classes if class_id not in ids]:
            raise ValueError(
                f"task.base_classes: expected class ids of {self.dataset} ({', '.join(ids[:20])}), got "
                f"{unknown[0]!r}. Take some of its ids."
            )
        base = [ids.index(class_id) for class_id in self.base_classes]
        new = [label for label in range(len(ids)) if label not in base]
        if min(len(base), len(new)) < 2 or len(set(base)) < len(base):
            raise ValueError(
                "task.base_classes: expected at least two different classes, with at least two left as new classes, "
                f"got {self.base_classes}. Leave task.base_classes out to take the first half."
            )
        return base, new

    @cached_property
    def lesson(self) -> Lesson:
        (train, val), base = self.training_images, self.base_and_new[0]
        if self.unlabelled:
            return self.hide_labels(train)
        train = self.add_noise(train.select_classes(base))
        return Lesson(train, None if val is None else val.select_classes(base))

    @property
    def labelled_names(self) -> Names:
        return tuple(self.data.train.names[label] for label in self.base_and_new[0])

    def stages(self) -> Iterator[Stage]:
        base, new = (self.data.test.select_classes(group) for group in self.base_and_new)
        others = {} if self.base_only else {"new": new, "joint": self.data.test}
        yield Stage(self.lesson, {"base": base, **others})

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        if self.base_only:
            return {"base": scores[-1]["base"]["accuracy"]}
        base, new, joint = (scores[-1][test]["accuracy"] for test in ("base", "new", "joint"))
        return {"base": base, "new": new, "harmonic": harmonic_mean(base, new), "joint": joint}
