"""Transfer: train on one dataset, test on others without further training.

Cross-dataset transfer and domain generalisation of Zhou et al., CVPR 2022, arXiv:2203.05557: the prompt is learned on
ImageNet, the targets are ten other datasets, or variants of ImageNet with their own lists of classes.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from vlprompt.core.stage import Stage
from vlprompt.data.dataset import Data
from vlprompt.data.loading import resolve_dataset
from vlprompt.data.sources import require_folder, select_layout
from vlprompt.tasks.few_shot import FewShot, get_split_origin


class Transfer(FewShot):
    """Train on k shots of a source; test on the source and on each target among the target's classes.

    The summary's average is over the targets.

    Args:
        dataset: the source, as in FewShot.
        targets: cards or folders.
        shots: as in FewShot.
        seed: as in FewShot.
        augment: as in FewShot.
        skip_broken: as in FewShot.
        layout: as in FewShot, of those that are folders.
    """

    seen_classes_hint = "Use --task few_shot for the accuracy on the source alone."

    def __init__(
        self,
        dataset: str | Data,
        targets: list[str] | None = None,
        shots: int | None = 16,
        seed: int = 1,
        augment: str | None = None,
        skip_broken: bool = False,
        layout: str | None = None,
    ):
        super().__init__(dataset, shots, seed, augment, skip_broken, layout)
        if not targets:
            raise ValueError(
                "task.targets: expected datasets or folders, got none. "
                "Set --targets digits or task.targets=[digits,glyphs]."
            )
        self.targets = [targets] if isinstance(targets, str) else targets
        if any(_is_same(self.dataset, target) for target in self.targets):
            raise ValueError(
                f"task.targets: expected other datasets than the source, got {self.dataset!r}. Leave it out: the "
                "source is tested anyway."
            )
        require_folder(layout, dataset, *self.targets)

    @cached_property
    def data(self) -> Data:
        layout = select_layout(self.layout, self.dataset_source)
        return resolve_dataset(self.dataset_source, self.augment, self.skip_broken, layout=layout)

    @property
    def opened_data(self) -> list[Data]:
        """The source and the targets."""
        return [self.data, *self.target_data.values()]

    @cached_property
    def target_data(self) -> dict[str, Data]:
        data_by_name: dict[str, Data] = {}
        for target in self.targets:
            data = resolve_dataset(target, self.augment, self.skip_broken, layout=select_layout(self.layout, target))
            if data.name in data_by_name:
                raise ValueError(
                    f"task.targets: expected different names, got {data.name!r} twice. Rename a folder, or list it "
                    "once."
                )
            data_by_name[data.name] = data
        return data_by_name

    @property
    def protocol(self) -> dict[str, Any]:
        targets = {
            name: {"test": data.test.hash(), "template": data.template, "split": get_split_origin(data)}
            for name, data in self.target_data.items()
        }
        return {**super().protocol, "targets": targets}

    def stages(self) -> Iterator[Stage]:
        tests = {"source": self.data.test} if len(self.data.test) else {}
        yield Stage(self.lesson, {**tests, **{name: data.test for name, data in self.target_data.items()}})

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        accuracy = {name: scores[-1][name]["accuracy"] for name in ("source", *self.target_data) if name in scores[-1]}
        return {**accuracy, "average": sum(accuracy[name] for name in self.target_data) / len(self.target_data)}


def _is_same(dataset: str, other: str) -> bool:
    """Whether two settings name one dataset, or one path."""
    return dataset == other or Path(dataset).expanduser().resolve() == Path(other).expanduser().resolve()
