"""Find out before a training whether a method can answer the classes of the tests that follow it."""

import torch

from vlprompt.core.class_names import class_ids
from vlprompt.core.method import Method
from vlprompt.core.stage import Stage
from vlprompt.runtime import collectives
from vlprompt.runtime.errors import UnknownClassError


@torch.no_grad()
def require_test_classes(method: Method, stage: Stage, hint: str = "") -> None:
    """Check the tests of the first stage; those of its unseen classes that the method can't answer are refused.

    The method is asked, by beginning the lesson without items; it has to begin the lesson again.

    Args:
        method: one that is not trained yet.
        stage: the first stage.
        hint: what the task offers instead, for the error.

    Raises:
        UnknownClassError: with the test and what the method lacks.
    """
    known_ids = class_ids(stage.lesson.train.names)
    unseen = {name: _list_unseen(test.names, known_ids) for name, test in stage.tests.items()}
    if stage.lesson.index or not any(unseen.values()):
        return
    try:
        with torch.random.fork_rng(), collectives.synchronize_state(method):
            method.begin_lesson(stage.lesson.without_items(), torch.Generator())
    except (ValueError, RuntimeError):  # the lesson itself will say what is wrong, with its items
        return
    for name, names in unseen.items():
        try:
            if names:
                method.precompute(names)
        except UnknownClassError as error:
            raise UnknownClassError(f"test {name!r}: {error}{hint and f' {hint}'}") from error
        except (ValueError, RuntimeError):  # the test itself will say what is wrong
            continue


def _list_unseen(names: tuple[str, ...], known_ids: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name, i in zip(names, class_ids(names), strict=True) if i not in known_ids)
