"""What a run needs of its options, its method and its task."""

from collections.abc import Mapping
from typing import Any

from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.tasks import Task

MEMORY_SETTINGS = ("micro_batch_size", "text_micro_batch", "activation_checkpointing")


def require_valid_options(max_lessons: int | None, memory_overrides: Mapping[str, Any]) -> None:
    """Raise ValueError for options of `run` that are out of their range."""
    if max_lessons is not None and max_lessons < 1:
        raise ValueError(f"--max-lessons: expected at least 1, got {max_lessons}. Set 1 or more, or leave it out.")
    if unknown := set(memory_overrides) - set(MEMORY_SETTINGS):
        raise ValueError(
            f"memory_overrides: expected {', '.join(MEMORY_SETTINGS)}, got {', '.join(sorted(unknown))}. "
            "Set it in the configuration."
        )


def require_image_towers(method: Method) -> None:
    """Raise ValueError where a method that needs an image tower was given a CLIP."""
    if any(isinstance(getattr(part, "tower", None), Clip) for part in method.modules()):
        raise ValueError(f"{type(method).__name__}: expected an image tower, got a Clip. Pass clip.image.")


def require_stream(method: Method, task: Task) -> None:
    """Raise ValueError where the task of a method whose answers depend on the order of the images has no order."""
    if method.is_online and not getattr(task, "is_online", False):
        raise ValueError(
            f"{type(method).__name__}: expected a task whose test images are a stream, since its answers depend on "
            f"their order, got {type(task).__name__}. Set --task online."
        )


def require_label_kind(method: Method, lesson: Lesson) -> None:
    """Raise ValueError where items may have several labels and the method can only learn from those with one."""
    parts = [part for part in method.modules() if getattr(part, "needs_single_labels", False)]
    if parts and lesson.train.has_several_labels:
        raise ValueError(
            f"{type(parts[0]).__name__}: expected items with one label each, got items that may have several. Take a "
            "method whose loss is of its logits alone, such as coop, vpt or dualcoop."
        )
