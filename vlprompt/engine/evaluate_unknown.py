"""Evaluate a method on items of its classes against items of unknown ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.head import Prepared
from vlprompt.core.method import Method, Output
from vlprompt.engine.evaluate import Scores, collect_outputs, predict_classes, score_outputs
from vlprompt.engine.unknown_scores import SCORES, make_score_fn
from vlprompt.metrics import unknown_scores
from vlprompt.runtime.errors import NonFiniteError

N_TRIED_ITEMS = 8  # on which a score is tried before the whole test


class UnknownAnswers(NamedTuple):
    """predicted classes (M,), C for none, and logits (M, C) of unknown items, among the known classes."""

    predicted: Tensor
    logits: Tensor


class OpenSetScores(NamedTuple):
    """What known items came to against unknown ones.

    Args:
        known: the scores of the known items, among the known classes.
        metrics: unknown set -> "METRIC_SCORE" -> value in percent, of the metrics of `UNKNOWN_METRICS`.
        notes: which scores the method lacks, and why.
        names: the scores (S).
        known_values: (N, S) of the known items.
        unknown_values: unknown set -> (M, S) of its items.
        unknown: unknown set -> the answers and logits (M, C) of its items, among the known classes.
    """

    known: Scores
    metrics: dict[str, dict[str, float]]
    notes: tuple[str, ...]
    names: tuple[str, ...]
    known_values: Tensor
    unknown_values: dict[str, Tensor]
    unknown: dict[str, UnknownAnswers]


def evaluate_against_unknown(
    method: Method,
    known: Split,
    unknown: Mapping[str, Split],
    scores: Sequence[str] = (),
    batch_size: int = 100,
    micro_batch_size: int | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> OpenSetScores:
    """Evaluate a method on known items, and by scores of how well an item is known against unknown ones.

    Args:
        method: what is evaluated.
        known: items of its classes.
        unknown: sets of items of other classes, by name; their labels are not read.
        scores: names of scores; () for all that the method has. A score that the method lacks is left out.
        batch_size: items of a batch.
        micro_batch_size: as in `iter_outputs`.
        on_progress: called with (name of the unknown set or "", items done, items in all).

    Raises:
        ValueError: for an empty set, and where the method has none of the scores.
        NonFiniteError: for a score that is NaN.
    """
    for name, split in {"test": known, **unknown}.items():
        if not len(split):
            raise ValueError(f"test {name!r}: expected items, got none. Take another split or fewer parts.")
    was_training = method.training
    prepared = _prepare(method, known)
    names, notes = find_scores(method, known, prepared, scores or tuple(SCORES))
    if not names:
        raise ValueError(f"task.scores: expected a score that the method has, got {', '.join(scores)}. {notes[0]}")
    score_fn = make_score_fn(method, names)

    def collect(name: str, split: Split) -> tuple[Output, Tensor]:
        report = None if on_progress is None else partial(on_progress, name)
        output = collect_outputs(method, split, batch_size, micro_batch_size, prepared, score_fn, report)
        return output, _require_numbers(cast(Tensor, output.scores))

    output, known_values = collect("", known)
    known_scores = score_outputs(output, known)
    metrics, unknown_values, answers = dict[str, dict[str, float]](), dict[str, Tensor](), dict[str, UnknownAnswers]()
    for name, split in unknown.items():
        # among the known classes, as the labels of unknown items mean nothing
        split = replace(split, names=known.names, labels=(0,) * len(split), domains=None, info={})
        output, values = collect(name, split)
        unknown_values[name], answers[name] = values, answer_unknown(output)
        by_score = {score: unknown_scores(known_values[:, k], values[:, k]) for k, score in enumerate(names)}
        metrics[name] = {f"{metric}_{score}": v for score, found in by_score.items() for metric, v in found.items()}
    method.train(was_training)
    return OpenSetScores(known_scores, metrics, notes, tuple(names), known_values, unknown_values, answers)


def answer_unknown(output: Output, temperature: float = 1.0) -> UnknownAnswers:
    """Return what was answered for unknown items; their logits are divided by the temperature."""
    return UnknownAnswers(predict_classes(output), output.logits / temperature)


@torch.no_grad()
def _prepare(method: Method, split: Split) -> Prepared:
    return method.eval().prepare(split.names, method.precompute(split.names))


def find_scores(
    method: Method, test: Split, prepared: Prepared, names: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Return the scores that a method has, and why it lacks the others, tried on some items."""
    present, notes = list[str](), list[str]()
    few = test.select(range(min(N_TRIED_ITEMS, len(test))))
    for name in names:
        try:
            collect_outputs(method, few, prepared=prepared, score_fn=make_score_fn(method, [name]))
            present.append(name)
        except ValueError as error:
            notes.append(f"left out: {error}")
    return present, tuple(notes)


def _require_numbers(scores: Tensor) -> Tensor:
    if bool(scores.isnan().any()):
        raise NonFiniteError(
            "test: expected scores that are numbers, got NaN. Check the weights of the backbone, or train with a "
            "smaller train.lr."
        )
    return scores
