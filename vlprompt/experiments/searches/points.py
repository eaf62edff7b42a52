"""A point of a search: values of the settings that it varies, and the configuration of its run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlprompt.config.resolve import load_layered_config, resolve
from vlprompt.config.run_config import RunConfig, hash_config
from vlprompt.config.sources import Override, nest_setting
from vlprompt.experiments.searches.space import VMAP_KEYS, parse_number


@dataclass(frozen=True)
class SearchPoint:
    """One point of a search.

    Args:
        values: by the key of their setting.
        config: the configuration of its run.
    """

    values: dict[str, Any]
    config: RunConfig

    @property
    def key(self) -> str:
        return self.config.hash

    @property
    def vmap_group(self) -> str:
        """What it has in common with the points that it may train with in one vmapped pass."""
        train = {k: v for k, v in self.config.train.items() if f"train.{k}" not in VMAP_KEYS}
        return hash_config({**self.config.to_dict(), "train": train})


@dataclass(frozen=True)
class PointBuilder:
    """Builds the points of a search.

    Args:
        method: its name, or None for the one of the file.
        seed: of the runs of the search.
        overrides: settings that all points have.
        options: as `load_layered_config` takes them.
        base_batch_size: the batch size that the learning rates are for, from which they are scaled; None for as is.
    """

    method: str | None
    seed: int
    overrides: Sequence[Override]
    options: dict[str, Any]
    base_batch_size: int | None
    configs: dict[str, RunConfig] = field(default_factory=dict)  # resolved ones, by the values but the rates

    def build(self, values: dict[str, Any]) -> SearchPoint:
        """Return the point of these values; ValueError for values that a setting can't have."""
        settings = [nest_setting(k, v) for k, v in values.items() if k not in VMAP_KEYS]
        structure = json.dumps(settings)
        if structure not in self.configs:
            overrides = [*self.overrides, *settings]
            layers = load_layered_config(self.method, seed=self.seed, overrides=overrides, **self.options)
            self.configs[structure] = resolve(layers)
        point = SearchPoint(values, self._set_rates(self.configs[structure], values))
        point.config.validate()
        return point

    def _set_rates(self, config: RunConfig, values: dict[str, Any]) -> RunConfig:
        """Return a configuration with the learning rate and weight decay of a point."""
        rates = {k.partition(".")[2]: parse_number(k, v) for k, v in values.items() if k in VMAP_KEYS}
        if self.base_batch_size and "lr" in rates:
            rates["lr"] = rates["lr"] * config.train["batch_size"] / self.base_batch_size
        return replace(config, train={**config.train, **rates})
