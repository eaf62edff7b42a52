"""Base-to-new generalisation: train on half of the classes, test on each half by itself.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557.
"""

from collections.abc import Iterator
from functools import cached_property

from vlprompt.core.class_names import ids
from vlprompt.core.stage import Lesson, Stage
from vlprompt.data.dataset import Data
from vlprompt.data.splits.sampling import halves
from vlprompt.metrics import harmonic_mean
from vlprompt.tasks.few_shot import FewShot


class BaseToNew(FewShot):
    """k shots of the base classes; tests closed to each half, and one over all classes at once (joint).

    The shots are drawn from all classes and the base ones kept, as the literature does, so they are those of FewShot.
    base: ids of the base classes; default: the first ceil(n / 2). The other arguments are FewShot's.
    """

    def __init__(
        self,
        dataset: str | Data,
        shots: int | None = 16,
        seed: int = 1,
        base: list[str] | None = None,
        augment: str | None = None,
        skip_broken: bool = False,
    ):
        super().__init__(dataset, shots, seed, augment, skip_broken)
        self.base = base

    @cached_property
    def groups(self) -> tuple[list[int], list[int]]:
        """Labels of the base and of the new classes."""
        every = ids(self.data.train.names)
        if self.base is None:
            return halves(len(every))
        if strange := [i for i in self.base if i not in every]:
            raise ValueError(
                f"{self.dataset} has no class with the id {strange[0]!r}; its ids are {', '.join(every[:20])}"
            )
        base = [every.index(i) for i in self.base]
        new = [i for i in range(len(every)) if i not in base]
        if min(len(base), len(new)) < 2 or len(set(base)) < len(base):
            raise ValueError(
                f"base must name two classes or more, each once, and leave two or more as new; got {self.base}"
            )
        return base, new

    @cached_property
    def lesson(self) -> Lesson:
        whole, base = super().lesson, self.groups[0]
        return Lesson(whole.train.classes(base), None if whole.val is None else whole.val.classes(base))

    def stages(self) -> Iterator[Stage]:
        base, new = (self.data.test.classes(group) for group in self.groups)
        yield Stage(self.lesson, {"base": base, "new": new, "joint": self.data.test})

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        base, new, joint = (scores[-1][test]["accuracy"] for test in ("base", "new", "joint"))
        return {"base": base, "new": new, "harmonic": harmonic_mean(base, new), "joint": joint}
