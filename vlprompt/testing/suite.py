"""All checks of a method: as a list, as one call, and as tests for pytest."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from unittest import SkipTest

from vlprompt.core.towers import Backbone
from vlprompt.runtime.errors import describe_error
from vlprompt.testing import (
    answer_checks,
    label_checks,
    language_checks,
    learning_checks,
    settings_checks,
    stream_checks,
    task_checks,
)
from vlprompt.testing.case import MethodCase
from vlprompt.testing.failures import CheckFailure

CheckFunction = Callable[[MethodCase], None]
CHECKS: tuple[CheckFunction, ...] = (
    settings_checks.check_constructor,
    learning_checks.check_initial_values,
    learning_checks.check_gradients,
    learning_checks.check_backbone_unchanged,
    learning_checks.check_learns,
    learning_checks.check_reproducible,
    learning_checks.check_micro_batches,
    learning_checks.check_activation_checkpointing,
    learning_checks.check_bf16,
    label_checks.check_several_labels,
    answer_checks.check_state_restores,
    answer_checks.check_batch_independence,
    answer_checks.check_order_of_answers,
    answer_checks.check_class_order,
    answer_checks.check_new_class_names,
    language_checks.check_text_evaluation,
    stream_checks.check_second_lesson_same_classes,
    stream_checks.check_second_lesson_new_classes,
    stream_checks.check_first_lesson_restarts,
    task_checks.check_runs_few_shot,
    task_checks.check_runs_base_to_new,
    task_checks.check_runs_transfer,
    task_checks.check_runs_continual,
    task_checks.check_runs_domain,
    task_checks.check_runs_online,
    task_checks.check_runs_multi_label,
    task_checks.check_runs_text,
)
ON_TEXTS_ALONE = ("activation_checkpointing", "text_evaluation", "runs_text")
ON_IMAGES_ALONE = (
    "several_labels",
    "second_lesson_new_classes",
    *(
        f"runs_{task}"
        for task in ("few_shot", "base_to_new", "transfer", "continual", "domain", "online", "multi_label")
    ),
)


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Args:
        name: of the check.
        status: passed, failed or skipped.
        reason: why it failed, or why it does not apply.
    """

    name: str
    status: Literal["passed", "failed", "skipped"]
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """One check of one method; called, it raises CheckFailure, or SkipTest where it does not apply.

    Args:
        function: the check.
        case: the method under check.
    """

    function: CheckFunction
    case: MethodCase

    @property
    def name(self) -> str:
        return self.function.__name__.removeprefix("check_")

    @property
    def description(self) -> str:
        """The contract that it holds, in one sentence."""
        return (self.function.__doc__ or "").splitlines()[0]

    def __call__(self) -> None:
        self.function(self.case)

    def run(self) -> CheckResult:
        """Call it, and return the result; an error inside the method is a failure."""
        try:
            self()
        except SkipTest as reason:
            return CheckResult(self.name, "skipped", str(reason))
        except CheckFailure as failure:
            return CheckResult(self.name, "failed", str(failure))
        except Exception as error:
            return CheckResult(self.name, "failed", describe_error(error))
        return CheckResult(self.name, "passed")


def iter_checks(
    cls: type, settings: Mapping[str, Any] | None = None, backbone: str | Backbone | None = None
) -> Iterator[Check]:
    """Yield the checks for a class of methods; they share one object that was trained once.

    Args:
        cls: a subclass of Method, at the top of a module that can be imported.
        settings: its constructor's arguments as configuration, such as {"rank": 2, "head": "linear"}.
        backbone: a loaded backbone or its name; default: a tiny random CLIP, or a tiny random language model for a
            method that asks for one.

    Raises:
        ValueError: for a class that is no method or can't be imported.
    """
    case = MethodCase(cls, settings, backbone)
    yield from (Check(function, case) for function in CHECKS if suits(function, case))


def suits(function: CheckFunction, case: MethodCase) -> bool:
    """Return whether a check is about the kind of inputs that the method takes."""
    other = ON_IMAGES_ALONE if case.has_texts else ON_TEXTS_ALONE
    return function.__name__.removeprefix("check_") not in other


def check_method(
    cls: type, settings: Mapping[str, Any] | None = None, backbone: str | Backbone | None = None
) -> list[CheckResult]:
    """Run all checks; arguments as in `iter_checks`.

    Returns:
        The results of all checks, if none failed.

    Raises:
        CheckFailure: that lists all checks that failed.
    """
    results = [check.run() for check in iter_checks(cls, settings, backbone)]
    if failed := [result for result in results if result.status == "failed"]:
        lines = [f"{result.name}: {result.reason}" for result in failed]
        heading = f"{cls.__name__}: {len(failed)} of {len(results)} checks failed."
        raise CheckFailure("\n".join([heading, *lines]))
    return results


def parametrize_with_checks(
    cls: type,
    settings: Mapping[str, Any] | None = None,
    backbone: str | Backbone | None = None,
    argument: str = "check",
) -> Callable[[Callable[..., Any]], Any]:
    """Return pytest's decorator that gives a test each check of a method; the test calls it.

    Args:
        cls, settings, backbone: as in `iter_checks`.
        argument: the test's argument that is the check.
    """
    import pytest

    checks: Sequence[Check] = list(iter_checks(cls, settings, backbone))
    return pytest.mark.parametrize(argument, checks, ids=[check.name for check in checks])
