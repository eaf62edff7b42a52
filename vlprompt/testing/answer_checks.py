"""Checks of answers: after a saved state is loaded, in other batches, and about other class names."""

import copy
from collections.abc import Sequence
from io import BytesIO
from unittest import SkipTest

import torch
from torch import Tensor

from vlprompt.core.batch import Inputs
from vlprompt.core.class_names import ClassName
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.methods.zero_shot import ZeroShot
from vlprompt.testing.case import MethodCase
from vlprompt.testing.failures import CheckFailure, require
from vlprompt.testing.learning_checks import is_same

NEW_NAMES = (ClassName("snow leopard"), ClassName("red panda"), ClassName("yak {wild}"))
CLASS_ORDER = (7, 2, 5, 9, 0, 1, 8, 6, 3, 4)
BATCH_TOLERANCE = 1e-5  # of the largest logit: sums of a batch may be added in another order


def check_state_restores(case: MethodCase) -> None:
    """A saved state is loaded without data, and the answers are the same bit for bit."""
    state, again = copy.deepcopy(case.trained.state_dict()), case.build()
    restore_state(again, [case.lesson], state)
    logits = [case.answer(method, case.draw_inputs(5, "state")) for method in (case.trained, again)]
    require(
        is_same(*logits),
        f"state_dict: expected all that was learned, got answers that differ by {_max_difference(*logits):.1e} after "
        "it was loaded into a new object. Register what is learned as nn.Parameter or by register_buffer.",
    )


def restore_state(method: Method, lessons: Sequence[Lesson], state: dict[str, Tensor]) -> None:
    """Load a saved state into a new method."""
    try:
        method.restore(lessons, state)
    except (RuntimeError, IndexError, StopIteration, ZeroDivisionError) as error:
        raise CheckFailure(
            f"restore: expected a state that is loaded without data, got {type(error).__name__}: {error}. Create all "
            "parameters and buffers in begin_lesson, with shapes that follow from the class names alone."
        ) from error


def check_batch_independence(case: MethodCase) -> None:
    """An answer does not depend on the other inputs of its batch."""
    if case.answer_kind != "class":
        raise SkipTest("logits of free-form answers have no row for each text")
    together = case.answer(case.trained, case.draw_inputs(6, "batch"))
    alone = case.answer_batches(case.trained, case.draw_single_inputs(6, "batch"))
    require_close_answers(together, alone, case)


def check_order_of_answers(case: MethodCase) -> None:
    """An answer depends on no earlier one; of an online method on these alone, in any batches and after a pause."""
    if case.answer_kind != "class":
        raise SkipTest("logits of free-form answers have no row for each text")
    method, inputs = case.trained, case.draw_inputs(6, "batch")
    together = case.answer(method, inputs)
    if method.is_online:
        _check_stream(case, inputs, together)
        return
    last, first = case.answer_batches(method, [inputs.slice(2, 6), inputs.slice(0, 2)]).split([4, 2])
    difference = _max_difference(together, torch.cat([first, last]))
    require(
        difference <= _compute_tolerance(together, case),
        f"forward: expected the same answer whatever was answered before, got logits that differ by {difference:.1e} "
        "in another order. Change nothing in forward, or set is_online = True.",
    )


def _check_stream(case: MethodCase, inputs: Inputs, together: Tensor) -> None:
    """Check the answers (N, C) of an online method to a stream: again, one by one, and after a pause."""
    method, again = case.trained, case.build()
    repeated = case.answer(method, inputs)
    require(
        is_same(together, repeated),
        f"is_online: expected the same answers to the same stream, got logits that differ by "
        f"{_max_difference(together, repeated):.1e}. Begin each stream in `prepare`.",
    )
    alone = case.answer_batches(method, [inputs.slice(i, i + 1) for i in range(6)])
    restore_state(again, [case.lesson], copy.deepcopy(method.state_dict()))
    stream, buffer = case.prepare(method), BytesIO()
    with torch.no_grad():
        begun = method(inputs.slice(0, 2), stream).logits
        torch.save(stream, buffer)
        buffer.seek(0)
        resumed = again.eval()(inputs.slice(2, 6), torch.load(buffer, weights_only=False)).logits
    for how, logits in (("one by one", alone), ("after a pause", torch.cat([begun, resumed]))):
        difference = _max_difference(together, logits)
        require(
            difference <= _compute_tolerance(together, case),
            f"is_online: expected the same answers to a stream {how}, got logits that differ by {difference:.1e}. "
            "Answer its inputs in their order, each from what `prepare` returned and the inputs before.",
        )


def require_close_answers(together: Tensor, alone: Tensor, case: MethodCase) -> None:
    """Raise CheckFailure where answers in one batch differ from those one by one."""
    is_close = _max_difference(together, alone) <= _compute_tolerance(together, case)
    require(
        torch.equal(together.isfinite(), alone.isfinite()) and is_close,
        f"forward: expected the same answer to an input in any batch, got logits that differ by "
        f"{_max_difference(together, alone):.1e} from those one by one. Use no mean, norm or maximum over the batch "
        "outside of training.",
    )


def _compute_tolerance(logits: Tensor, case: MethodCase) -> float:
    """Return by how much answers in other batches may differ."""
    finite = logits[logits.isfinite()].abs()
    scale = max(1.0, float(finite.max())) if len(finite) else 1.0
    return BATCH_TOLERANCE * scale * (10 if case.has_texts else 1)  # texts are padded to the longest


def check_new_class_names(case: MethodCase) -> None:
    """Class names that were not in the lesson are answered, or refused with their name."""
    if case.answer_kind != "class":
        raise SkipTest("free-form answers have no class names")
    method, inputs = case.begin(), case.draw_inputs(2, "new names")
    try:
        logits = case.answer(method, inputs, NEW_NAMES)
    except ValueError as error:
        require(
            NEW_NAMES[0] in str(error),
            f"class names: expected a refusal that names {NEW_NAMES[0]!r}, got {error} Raise it with the unknown name, "
            "as vlprompt.layers.heads.find_class_indices does.",
        )
        return
    require(
        logits.shape == (2, len(NEW_NAMES)),
        f"class names: expected logits of the shape (2, {len(NEW_NAMES)}) for {len(NEW_NAMES)} new names, got "
        f"{tuple(logits.shape)}. Make class texts of `names` in precompute or prepare, or raise a ValueError that "
        "names the unknown class.",
    )


def check_class_order(case: MethodCase) -> None:
    """The class names that are passed choose the columns of an answer, and their order."""
    if case.answer_kind != "class":
        raise SkipTest("free-form answers have no class names")
    order = [1, 0] if case.has_texts else list(CLASS_ORDER if case.cls.depends_on_class_set else CLASS_ORDER[:3])
    full = case.answer(case.trained, case.draw_inputs(3, "order"))
    part = case.answer(case.trained, case.draw_inputs(3, "order"), tuple(case.names[i] for i in order))
    wanted = full[:, order]
    require(
        part.shape == wanted.shape,
        f"class names: expected one column for each of {len(order)} names, got logits of the shape "
        f"{tuple(part.shape)}. Use the argument `names` instead of the names of the lesson.",
    )
    tolerance = BATCH_TOLERANCE * float(full.abs().max().clamp(min=1)) * (10 if case.has_texts else 1)
    require(
        torch.allclose(part, wanted, atol=tolerance),
        f"class names: expected the same logit for a class wherever its name stands, got logits that differ by "
        f"{_max_difference(part, wanted):.1e}. Find weights by the class's id (class_ids(names)), or set "
        "depends_on_class_set = True if a score depends on which other classes there are.",
    )


def check_starts_as_zero_shot(case: MethodCase, template: str, tolerance: float = 1e-3) -> None:
    """The method begins as the zero-shot CLIP; not one of the common checks, as only some methods claim it."""
    if not isinstance(case.backbone, Clip):
        raise SkipTest("zero-shot classification needs a CLIP")
    method, inputs = case.begin(), case.draw_inputs(4, "start")
    logits = case.answer(method, inputs), case.answer(ZeroShot(case.backbone, template), inputs)
    require(
        torch.allclose(*logits, atol=tolerance),
        f"begin_lesson: expected the answers of a zero-shot CLIP at the start, got logits that differ by "
        f"{_max_difference(*logits):.1e}. Begin residuals at zero.",
    )


def _max_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference where both are finite."""
    difference = (one - other).abs()
    finite = difference[difference.isfinite()]
    return float(finite.max()) if len(finite) else 0.0
