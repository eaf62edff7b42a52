"""Write a run's configuration as the command that makes it again."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from vlprompt.config.resolve import load_layered_config, resolve
from vlprompt.config.run_config import hash_config
from vlprompt.config.sources import format_override, iter_flat_settings
from vlprompt.results.comparability import DOMAIN


def build_run_command(config: Mapping[str, Any]) -> str:
    """Return the `vlprompt run` command of a resolved configuration.

    It names the settings in which the run differs from the recipes of this version, or all where that is not the same
    configuration.
    """
    task, seed = config["task"], config["seed"]
    options = {"dataset": task.get("dataset"), "task": task["name"], "backbone": config["backbone"]}
    pair = _build_pair_options(task)
    named = {"method.name", "task.name", "task.dataset", "task.shots", "backbone", "seed"}
    named |= {f"task.{option.removeprefix('--')}" for option in pair[::2]}
    if config["train"].get("iterations") is not None:
        named.add("train.epochs")  # it has no effect, and a command gives one length of the training
    settings = {key: value for key, value in iter_flat_settings(config) if key not in named}
    shots = task.get("shots")
    overrides = [format_override(key, value) for key, value in settings.items()]
    if isinstance(options["dataset"], str | None):
        with suppress(ValueError, OSError):
            method = config["method"]["name"]
            fixed: list[Any] = [{"task": {name: task[name] for name in ("source", "target")}}] if pair else []
            defaults = resolve(load_layered_config(method, shots, seed, **options, overrides=fixed)).to_dict()
            flat = dict(iter_flat_settings(defaults))
            short = [format_override(k, v) for k, v in settings.items() if k not in flat or flat[k] != v]
            layers = load_layered_config(method, shots, seed, **options, overrides=[*fixed, *short])
            overrides = short if resolve(layers).hash == hash_config(dict(config)) else overrides
    words = ["vlprompt", "run", config["method"]["name"]]
    words += [options["dataset"]] if isinstance(options["dataset"], str) else []
    words += ["--task", task["name"], "--backbone", config["backbone"]]
    words += ["--shots", str(shots)] if type(shots) is int else []
    return shlex.join([*words, *pair, "--seed", str(seed), *overrides])


def _build_pair_options(task: Mapping[str, Any]) -> list[str]:
    """Return --source and --target of a pair of domains, [] for other tasks: without them each domain has its turn."""
    source, target = task.get("source"), task.get("target")
    if task["name"] != DOMAIN or not isinstance(target, str):
        return []
    sources = ",".join(source) if isinstance(source, list) else source or "none"
    return ["--source", sources, "--target", target]
