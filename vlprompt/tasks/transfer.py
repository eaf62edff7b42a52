"""Transfer: train on one dataset, test on others as they are.

Cross-dataset transfer and domain generalisation of Zhou et al., CVPR 2022, arXiv:2203.05557: the prompt is learned on
ImageNet, the targets are ten other datasets, or variants of ImageNet with their own lists of classes.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from vlprompt.core.stage import Stage
from vlprompt.data.dataset import Data
from vlprompt.data.loading import open_data
from vlprompt.tasks.few_shot import FewShot, split_of


class Transfer(FewShot):
    """k shots of a source; the tests are the source's and those of each target, among the target's own classes.

    targets: cards or folders. The average is over the targets. The other arguments are FewShot's; `dataset` is the
    source.
    """

    def __init__(
        self,
        dataset: str | Data,
        targets: list[str] | None = None,
        shots: int | None = 16,
        seed: int = 1,
        augment: str | None = None,
        skip_broken: bool = False,
    ):
        super().__init__(dataset, shots, seed, augment, skip_broken)
        if not targets:
            raise ValueError(
                "transfer needs targets: datasets or folders, such as --targets digits or task.targets=[digits,glyphs]"
            )
        self.targets = [targets] if isinstance(targets, str) else targets

    @cached_property
    def others(self) -> dict[str, Data]:
        found: dict[str, Data] = {}
        for target in self.targets:
            data = open_data(target, self.augment, self.skip_broken)
            if data.name in found:
                raise ValueError(f"two targets are called {data.name!r}; rename a folder or name it once")
            found[data.name] = data
        return found

    @property
    def protocol(self) -> dict[str, Any]:
        targets = {
            name: {"test": data.test.hash(), "template": data.template, "split": split_of(data)}
            for name, data in self.others.items()
        }
        return {**super().protocol, "targets": targets}

    def stages(self) -> Iterator[Stage]:
        tests = {"source": self.data.test} if len(self.data.test) else {}
        yield Stage(self.lesson, {**tests, **{name: data.test for name, data in self.others.items()}})

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        found = {test: scores[-1][test]["accuracy"] for test in ("source", *self.others) if test in scores[-1]}
        return {**found, "average": sum(found[name] for name in self.others) / len(self.others)}
