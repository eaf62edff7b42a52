"""How and where the runs of a sweep are made, and the backbones that they share."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.backbones.schemes import choose_threads
from vlprompt.config.run_config import RunConfig
from vlprompt.runtime.settings import SETTINGS

if TYPE_CHECKING:
    from vlprompt.core.towers import Backbone


@dataclass(frozen=True)
class SweepOptions:
    """How and where runs are made; nothing that they learn depends on it, but for rounding where runs train together.

    Args:
        runs_folder: where the folder of each run goes.
        device: as `load` takes it.
        threads: CPU threads; None for torch's default, but one for the embedded backbones.
        save_every: seconds between two saved states.
        max_lessons: pause streams after this number of lessons.
        fresh: make a run in a new folder where its folder holds one on other inputs.
        trackers: names of the trackers that runs are copied to.
        keep_predictions: write the predictions and logits of each item of the last tests into the folders.
        side_by_side: train runs that differ by seed, learning rate or weight decay in one pass, where it pays.
    """

    runs_folder: Path
    device: str | None = None
    threads: int | None = None
    save_every: float = 5.0
    max_lessons: int | None = None
    fresh: bool = False
    trackers: Sequence[str] = ()
    side_by_side: bool = False
    keep_predictions: bool = False

    def describe(self) -> dict[str, Any]:
        """Describe the options besides the folder by plain values, for other processes."""
        return {name: value for name, value in asdict(self).items() if name != "runs_folder"}


@dataclass
class LoadedBackbones:
    """Backbones by name, each loaded once; those that differ in preprocessing only share their weights.

    Args:
        options: on which device, with how many threads.
        backbones: those that are loaded already.
    """

    options: SweepOptions
    backbones: "dict[str, Backbone]" = field(default_factory=dict)

    def load(self, config: RunConfig) -> "Backbone":
        """Return the backbone of a run, and set the threads that suit it."""
        import torch

        from vlprompt.core.towers import find_preprocessing, with_preprocessing
        from vlprompt.data.images.preprocess_presets import resolve_preprocessing

        SETTINGS.threads = self.options.threads
        if (threads := choose_threads(config.backbone)) is not None:
            torch.set_num_threads(threads)
        backbone = self._load_once(config.backbone)
        if config.preprocess is None:
            return backbone
        key = f"{config.backbone} {json.dumps(config.preprocess)}"
        if key not in self.backbones:
            preprocessing = resolve_preprocessing(config.preprocess, find_preprocessing(backbone))
            self.backbones[key] = with_preprocessing(backbone, preprocessing)
        return self.backbones[key]

    def _load_once(self, name: str) -> "Backbone":
        from vlprompt.backbones import load_backbone
        from vlprompt.backbones.feature_cache import attach_disk_cache

        if name not in self.backbones:  # without its notes, which are shown with each result
            backbone = load_backbone(name, self.options.device)
            self.backbones[name] = attach_disk_cache(backbone, SETTINGS.get_cache_folder())
        return self.backbones[name]
