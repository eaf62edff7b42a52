"""Checks of streams of lessons: a second lesson, and a first one that begins anew."""

import copy
from unittest import SkipTest

from vlprompt.core.batch import Unlabelled
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.runtime.seeding import make_generator
from vlprompt.testing.answer_checks import require_close_answers, restore_state
from vlprompt.testing.case import CHECK_TRAINING, MethodCase
from vlprompt.testing.failures import require
from vlprompt.testing.learning_checks import is_same, join_names


def check_second_lesson_same_classes(case: MethodCase) -> None:
    """A second lesson of the same classes is learned; its state is loaded without data; batches do not matter."""
    _check_second_lesson(case, has_new_classes=False)


def check_second_lesson_new_classes(case: MethodCase) -> None:
    """A second lesson of other classes is learned beside the first; its state is loaded; batches do not matter."""
    if case.has_texts:
        raise SkipTest("the texts of the checks have two classes only")
    _check_second_lesson(case, has_new_classes=True)


def _check_second_lesson(case: MethodCase, has_new_classes: bool) -> None:
    if case.answer_kind != "class":
        raise SkipTest("free-form answers have no classes")
    lessons = build_stream(case, has_new_classes)
    method, again = learn_stream(case, lessons), case.build()
    restore_state(again, lessons, copy.deepcopy(method.state_dict()))
    together = case.answer(method, case.draw_inputs(6, "second lesson"))
    require(
        together.shape == (6, len(case.names)),
        f"a second lesson: expected logits of the shape (6, {len(case.names)}) for the classes of both lessons, got "
        f"{tuple(together.shape)}. Extend what was learned where lesson.index is not 0.",
    )
    require(
        bool(together.isfinite().any(1).all()),
        "a second lesson: expected a finite logit for each input, got a row without one. Give classes of earlier "
        "lessons a logit too.",
    )
    require(
        is_same(together, case.answer(again, case.draw_inputs(6, "second lesson"))),
        "state_dict: expected all that two lessons taught, got other answers after it was loaded. Register what is "
        "learned as nn.Parameter or by register_buffer, and let begin_lesson alone decide shapes.",
    )
    alone = case.answer_batches(method, case.draw_single_inputs(6, "second lesson"))
    require_close_answers(together, alone, case)


def check_first_lesson_restarts(case: MethodCase) -> None:
    """The first lesson begins anew: an object that has learned a stream then has the state of a new object."""
    lessons = build_stream(case, has_new_classes=not case.has_texts)
    used, fresh = learn_stream(case, lessons), case.build()
    for method in (used, fresh):
        method.begin_lesson(lessons[0], make_generator(0))
    state, fresh_state = used.state_dict(), fresh.state_dict()
    differing = sorted({*state} ^ {*fresh_state}) if list(state) != list(fresh_state) else []
    differing += [name for name in fresh_state if name in state and not is_same(fresh_state[name], state[name])]
    require(
        list(state) == list(fresh_state) and not differing,
        f"begin_lesson: expected a new start where lesson.index is 0, got another state than a new object's "
        f"({join_names(differing) or 'in another order'}). Create all parameters and buffers there.",
    )
    require(
        [p.requires_grad for p in used.parameters()] == [p.requires_grad for p in fresh.parameters()],
        "begin_lesson: expected a new start where lesson.index is 0, got parameters that are still frozen. Create them "
        "anew there.",
    )


def build_stream(case: MethodCase, has_new_classes: bool) -> list[Lesson]:
    """Return two lessons: of the same classes, or of half of them and the others."""
    lesson, n = case.lesson, len(case.names)
    parts = [range(n // 2), range(n // 2, n)] if has_new_classes else [range(n), range(n)]
    lessons = list[Lesson]()
    for index, part in enumerate(parts):
        train, val = lesson.train, lesson.val
        if case.answer_kind == "class":
            train, val = train.select_classes(part), None if val is None else val.select_classes(part)
        target = lesson.unlabelled
        if target is not None:
            target = Unlabelled(target.items, train.names, target.augment)
        lessons.append(Lesson(train, val, target, domains=lesson.domains, index=index, total=2))
    return lessons


def learn_stream(case: MethodCase, lessons: list[Lesson]) -> Method:
    """Train a new method on lessons one after the other."""
    method = case.build()
    for index, lesson in enumerate(lessons):
        method.begin_lesson(lesson, make_generator("stream", index))
        list(fit(method, lesson, TrainConfig(epochs=1, **CHECK_TRAINING), seed=index))
        method.end_lesson(lesson)
    return method
