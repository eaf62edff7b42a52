"""What a result says of the machine it was made on, and a learned state of the lessons it was learned from."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vlprompt.core.class_names import Names, as_class_name, extend_ids
from vlprompt.core.stage import Lesson
from vlprompt.runtime import distributed
from vlprompt.runtime.installation import find_version

PACKAGES = ("vlprompt", "torch", "torchvision", "open_clip_torch", "timm")


@cache  # once a process: it runs the code that it has imported
def _find_commit() -> str | None:
    """Return the commit of the checkout that the code is in."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if process.returncode else process.stdout.strip()


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return the versions and hardware of a run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        **{package: find_version(package) for package in PACKAGES},
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "processes": distributed.get_world_size(),
        "git_commit": _find_commit(),
    }


def describe_learned_state(backbone_key: str, lessons: list[Lesson], config: dict[str, Any]) -> dict[str, Any]:
    """Return what a learned state needs to be restored: above all the classes of every lesson."""
    names = [
        [[str(n), n.id, n.template, n.words] for n in map(as_class_name, lesson.train.names)] for lesson in lessons
    ]
    return {
        "config": config,
        "backbone_key": backbone_key,
        "lessons": names,
        "total": lessons[0].total,
        "has_task_boundaries": lessons[0].has_task_boundaries,
        "domains": [list(lesson.domains) for lesson in lessons],
    }


def describe_predictions(config: Mapping[str, Any], lessons: Sequence[Lesson]) -> dict[str, Any]:
    """Return what a file of predictions says of its run: its settings in short, and the classes that it learned."""
    ids: Names = ()
    for lesson in lessons:
        ids = extend_ids(ids, lesson.train.names)
    return {
        "method": config["method"]["name"],
        "dataset": config["task"].get("dataset"),
        "task": config["task"]["name"],
        "seed": config["seed"],
        "backbone": config["backbone"],
        "vlprompt": find_version("vlprompt"),
        "learned_class_ids": ids,
    }
