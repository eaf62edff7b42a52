"""What two methods or more use."""

from torch import nn

from vlprompt.core.stage import Lesson


def needs_target(method: nn.Module, lesson: Lesson, *, domains: int = 0) -> None:
    """ValueError for a lesson with images that names no target to adapt to, or fewer than so many domains.

    The target may come with a later lesson: then it is the last domain, and no image to train on is of that.
    """
    what, named, last = type(method).__name__, lesson.domains, len(lesson.domains) - 1
    how = "run it with --source and --target"
    if not lesson.unlabelled and len(lesson.train) and (last < 1 or last in (lesson.train.domains or ())):
        raise ValueError(
            f"{what} learns from the images of a target without their labels, and there is no target here: {how} "
            "(to generalise to a domain that is not seen, take a method that learns from labels alone, such as coop, "
            "with --task domain task.setting=generalise)"
        )
    if len(named) < domains:
        raise ValueError(
            f"{what} needs the names of {domains} domains or more, a source and a target, but this lesson has "
            f"{', '.join(map(repr, named)) or 'none'}: {how}"
        )
