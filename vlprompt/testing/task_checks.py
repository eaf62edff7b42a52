"""Checks that whole runs end in a result: every task that suits the method, from its settings to its scores."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import SkipTest

from vlprompt.config.build import build_task
from vlprompt.config.resolve import resolve_grid
from vlprompt.experiments.learned.prompt import build_run_method
from vlprompt.experiments.runner import run
from vlprompt.runtime.errors import UnknownClassError
from vlprompt.testing.case import MethodCase
from vlprompt.testing.failures import require
from vlprompt.testing.images import write_digit_folders, write_label_table
from vlprompt.testing.texts import AnswerKind, write_texts

SHORT_TRAINING = ("train.epochs=1", "train.iterations=null")


def check_runs_few_shot(case: MethodCase) -> None:
    """A run learns from one image per class, and tests on others."""
    check_runs(case, "few_shot")


def check_runs_base_to_new(case: MethodCase) -> None:
    """A run learns half of the classes, and tests on those and on the others by their names."""
    check_runs(case, "base_to_new")


def check_runs_transfer(case: MethodCase) -> None:
    """A run learns one dataset, and tests on another with other class names."""
    check_runs(case, "transfer")


def check_runs_continual(case: MethodCase) -> None:
    """A run learns the classes in two stages, and tests on all that were seen."""
    check_runs(case, "continual")


def check_runs_domain(case: MethodCase) -> None:
    """A run adapts from labelled images of one domain to unlabelled ones of another."""
    check_runs(case, "domain")


def check_runs_online(case: MethodCase) -> None:
    """A run learns from one image per class, and tests on a stream of others in two orders."""
    check_runs(case, "online")


def check_runs_multi_label(case: MethodCase, overrides: Sequence[str] = ()) -> None:
    """A run learns from images with several labels, half of them known, and tests on others; or it refuses them."""
    refuses = case.build().needs_unlabelled
    refuses |= any(getattr(part, "needs_single_labels", False) for part in case.build().modules())
    try:
        check_runs(case, "multi_label", overrides)
    except ValueError as refusal:
        if not refuses:
            raise
        raise SkipTest(str(refusal)) from refusal
    require(
        not refuses,
        "needs_single_labels, needs_unlabelled: expected a refusal of items with several labels, got a run. Set both "
        "to False.",
    )


def check_runs_text(case: MethodCase) -> None:
    """A run learns from texts, and tests on others."""
    check_runs(case, "text")


def check_runs(case: MethodCase, task: str, overrides: Sequence[str] = ()) -> None:
    """Raise CheckFailure unless a short run of a task ends in a result of its own configuration.

    Args:
        case: the method under check.
        task: the task's name.
        overrides: further settings, as on the command line.

    Raises:
        SkipTest: where the method refuses new classes or a task without a target domain, with its reason.
    """
    if case.has_texts != (task == "text"):
        raise SkipTest(f"it learns from {'texts' if case.has_texts else 'images'}")
    dataset, task_settings = choose_data(task, case.answer_kind)
    [plan] = resolve_grid(
        [case.name],
        [1],
        [1],
        dataset=dataset,
        task=task,
        backbone=case.backbone.spec,
        overrides=[*SHORT_TRAINING, *task_settings, {"method": case.arguments}, *overrides],
    )
    method = build_run_method(plan.method, case.backbone)
    needs_target = method.needs_unlabelled and task != "domain" and not plan.task.get("unlabelled")
    needs_order = method.is_online and task != "online"
    try:
        with TemporaryDirectory(prefix="vlprompt-check-") as folder:
            result = run(method, build_task(plan.task), plan.train_config, Path(folder) / "run", 1)
    except UnknownClassError as error:
        raise SkipTest(f"it knows the classes of its training only: {error}") from error
    except ValueError as error:
        if needs_target:
            raise SkipTest(f"it needs a target domain: {error}") from error
        if needs_order:
            raise SkipTest(f"it needs a stream of test images: {error}") from error
        raise
    require(not needs_target, f"needs_unlabelled: expected a refusal of the task {task}, got a run. Set it to False.")
    require(
        result.config == plan.to_dict(),
        "result: expected the configuration that was run, got another. Store each argument under its own name.",
    )
    score = next(iter(result.summary.values()))
    upper = float("inf") if case.answer_kind == "response" else 100  # of responses it is the perplexity
    require(0 <= score <= upper, f"result: expected a score from 0 to {upper}, got {score}. Return logits (B, C).")


def choose_data(task: str, kind: AnswerKind = "class") -> tuple[str, list[str]]:
    """Return the dataset of a task, and the settings of the task that it needs."""
    if task == "text":
        return _write_once("texts", lambda folder: write_texts(folder, kind), kind), []
    if task == "multi_label":
        return str(Path(_write_once("several labels", write_label_table)) / "labels.csv"), ["task.known=0.5"]
    root = Path(_write_once("images", write_digit_folders))
    settings = {
        "transfer": [f"task.targets=[{root / 'looks'}]"],
        "continual": ["task.stages=2"],
        "domain": ["task.source=ink", "task.target=chalk"],
        "online": ["task.orders=2"],
    }
    return str(root / ("domains" if task == "domain" else "digits")), settings.get(task, [])


@cache
def _make_folder() -> "TemporaryDirectory[str]":
    """Make the folder of all datasets of this process; it goes when the process ends."""
    return TemporaryDirectory(prefix="vlprompt-check-data-")


def _write_once(name: str, write: Callable[[Path], Path], kind: str = "") -> str:
    """Write a dataset, unless this process has written it, and return its folder."""
    folder = Path(_make_folder().name) / f"{name}{kind}"
    if not folder.exists():
        write(folder)
    return str(folder)
