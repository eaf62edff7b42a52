"""DomainBed's criteria of model selection, by which the settings of domain generalisation are searched.

Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021, arXiv:2007.01434.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from vlprompt.core.batch import Split
from vlprompt.core.stage import Lesson, Stage
from vlprompt.data.splits.domains import DomainData

Criterion = Literal["training-domain", "leave-one-domain-out", "test-domain"]
Phase = Literal["final", "search"]
CRITERIA: dict[Criterion, str] = {  # with their names in DomainBed
    "training-domain": "training-domain validation",
    "leave-one-domain-out": "leave-one-domain-out cross-validation",
    "test-domain": "test-domain validation (an oracle)",
}


def describe_choice(criterion: Criterion | None) -> str:
    """Return how the settings of a run were chosen, for its result."""
    return "given" if criterion is None else f"by {CRITERIA[criterion]}"


def require_criterion(criterion: Criterion | None, phase: Phase, setting: str) -> None:
    """Raise ValueError for a criterion that there is not, or that the setting of the task does not have."""
    if criterion is not None and criterion not in CRITERIA:
        raise ValueError(f"task.criterion: expected {', '.join(CRITERIA)}, got {criterion!r}. Set one of these.")
    if phase not in ("final", "search"):
        raise ValueError(f"task.phase: expected 'search' or 'final', got {phase!r}. Set one of these.")
    if criterion is not None and setting != "generalise":
        raise ValueError(
            f"task.criterion: expected task.setting=generalise, got {setting}. Leave it out, or set "
            "task.setting=generalise."
        )
    if phase == "search" and criterion is None:
        raise ValueError(
            f"task.criterion: expected one of {', '.join(CRITERIA)} for task.phase=search, got none. Set "
            "task.criterion=training-domain."
        )


def iter_search_stages(
    criterion: Criterion,
    sources: Sequence[DomainData],
    target: DomainData,
    is_transductive: bool,
    split_sources: Callable[[Sequence[DomainData]], tuple[Split, Split | None, Split | None]],
    name_domains: Callable[[Sequence[DomainData]], tuple[str, ...]],
) -> Iterator[Stage]:
    """Yield what a setting is trained on and judged by; of leave-one-domain-out a stage for each source held out.

    Args:
        criterion: one of `CRITERIA`.
        sources: with the classes of the target.
        target: read by the criterion test-domain alone: its images that are not tested, where it has some.
        is_transductive: whether all of the target's images are tested.
        split_sources: sources -> (train, val, test).
        name_domains: sources -> their names in texts.
    """
    if criterion == "leave-one-domain-out":
        if len(sources) < 2:
            raise ValueError(
                f"task.criterion=leave-one-domain-out: expected at least two sources, got {len(sources)}. Name more by "
                "task.source, or set task.criterion=training-domain."
            )
        for held_out in sources:
            rest = [source for source in sources if source is not held_out]
            train, val, _ = split_sources(rest)
            yield Stage(Lesson(train, val, domains=name_domains(rest)), {"val": _judge_by(held_out.all_images)})
        return
    train, val, _ = split_sources(sources)
    lesson = Lesson(train, val, domains=name_domains(sources))
    if criterion == "test-domain":
        before = target.images_before_test
        images = target.all_images if is_transductive else before if len(before) else target.test
        yield Stage(lesson, {"val": _judge_by(images)})
        return
    if val is None or not len(val):
        raise ValueError(
            "task.criterion=training-domain: expected held-out images of the sources, got none. Set "
            "task.val_fraction=0.1."
        )
    yield Stage(lesson, {"val": _judge_by(val)})


def _judge_by(images: Split) -> Split:
    return replace(images, domains=None, info={})
