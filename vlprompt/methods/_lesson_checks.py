"""Checks of what a stream's lessons must be for a method."""

from vlprompt.core.stage import Lesson


def require_task_boundaries(lesson: Lesson, method: str, purpose: str) -> None:
    """Check that a stream says where one lesson ends and the next begins; ValueError if not."""
    if not lesson.has_task_boundaries:
        raise ValueError(
            f"{method}: expected a stream with lesson boundaries, {purpose}, got a stream without them. Use l2p, or "
            "dualprompt with method.pool_size."
        )


def require_no_rehearsal(lesson: Lesson, method: str, reason: str) -> None:
    """Check that a lesson has no images of earlier ones; ValueError if not."""
    if lesson.memory is not None and len(lesson.memory):
        raise ValueError(
            f"{method}: expected no rehearsal, because {reason}, got a rehearsal buffer. Set task.buffer=0."
        )
