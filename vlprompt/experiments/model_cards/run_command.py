"""Write a run's configuration as the command that makes it again."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from vlprompt.config.resolve import load_layered_config, resolve
from vlprompt.config.run_config import hash_config
from vlprompt.config.sources import format_override, iter_flat_settings


def build_run_command(config: Mapping[str, Any]) -> str:
    """Return the `vlprompt run` command of a resolved configuration.

    It names the settings in which the run differs from the recipes of this version, or all where that is not the same
    configuration.
    """
    task, seed = config["task"], config["seed"]
    options = {"dataset": task.get("dataset"), "task": task["name"], "backbone": config["backbone"]}
    named = {"method.name", "task.name", "task.dataset", "task.shots", "backbone", "seed"}
    settings = {key: value for key, value in iter_flat_settings(config) if key not in named}
    shots = task.get("shots")
    overrides = [format_override(key, value) for key, value in settings.items()]
    if isinstance(options["dataset"], str | None):
        with suppress(ValueError, OSError):
            defaults = resolve(load_layered_config(config["method"]["name"], shots, seed, **options)).to_dict()
            flat = dict(iter_flat_settings(defaults))
            short = [format_override(k, v) for k, v in settings.items() if k not in flat or flat[k] != v]
            layers = load_layered_config(config["method"]["name"], shots, seed, **options, overrides=short)
            overrides = short if resolve(layers).hash == hash_config(config) else overrides
    words = ["vlprompt", "run", config["method"]["name"]]
    words += [options["dataset"]] if isinstance(options["dataset"], str) else []
    words += ["--task", task["name"], "--backbone", config["backbone"]]
    words += ["--shots", str(shots)] if type(shots) is int else []
    return shlex.join([*words, "--seed", str(seed), *overrides])
