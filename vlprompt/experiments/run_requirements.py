"""What a run needs of its options, its method and its task."""

from collections.abc import Mapping
from typing import Any

from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.engine.unknown_scores import require_score
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


def require_task(method: Method, task: Task) -> None:
    """Raise ValueError for a task that does not suit a method, or that names a score that there is not."""
    require_stream(method, task)
    for name in getattr(task, "scores", None) or ():
        require_score(name)


def require_stream(method: Method, task: Task) -> None:
    """Raise ValueError where the task of a method whose answers depend on the order of the images has no order."""
    if method.is_online and not getattr(task, "is_online", False):
        raise ValueError(
            f"{type(method).__name__}: expected a task whose test images are a stream, since its answers depend on "
            f"their order, got {type(task).__name__}. Set --task online."
        )


def require_label_kind(method: Method, lesson: Lesson) -> None:
    """Raise ValueError where items may have several labels and the method can't learn from those."""
    if not lesson.train.has_several_labels:
        return
    if method.needs_unlabelled and not lesson.unlabelled:
        raise ValueError(
            f"{type(method).__name__}: expected unlabelled images, which it learns from, got images with several "
            "labels. Take a method that learns from these, such as coop, vpt or dualcoop."
        )
    if parts := [part for part in method.modules() if getattr(part, "needs_single_labels", False)]:
        raise ValueError(
            f"{type(parts[0]).__name__}: expected items with one label each, got items that may have several. Take a "
            "method whose loss is of its logits alone, such as coop, vpt or dualcoop."
        )
