"""What a run is told by: its configuration, and the machine that it ran on."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vlprompt.core.class_names import named
from vlprompt.core.stage import Lesson
from vlprompt.runtime import distributed


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that was put on the path, not installed
        return None


def environment(device: torch.device) -> dict[str, Any]:
    here = Path(__file__).parents[2]
    found = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    commit = found.stdout.strip() if (here / ".git").exists() and not found.returncode else None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {
        package: _version(package) for package in ("vlprompt", "torch", "torchvision", "open_clip_torch", "timm")
    }
    return {
        "python": platform.python_version(),
        **versions,
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "git": commit,
    }


def learned_from(key: str, lessons: list[Lesson], config: dict[str, Any]) -> dict[str, Any]:
    """What a learned state must say of itself, to be taken up again; the classes of all lessons above all."""
    names = [[[str(n), n.id, n.hand, n.words] for n in map(named, lesson.train.names)] for lesson in lessons]
    about = {"lessons": names, "total": lessons[0].total, "announced": lessons[0].announced}
    about["domains"] = [list(lesson.domains) for lesson in lessons]
    return {"config": config, "backbone_key": key, **about}
