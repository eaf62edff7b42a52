"""Evaluate a method on the tests of a stage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from vlprompt.core.batch import Split
from vlprompt.core.class_names import class_ids
from vlprompt.core.compute_options import ComputeOptions
from vlprompt.core.introspection import apply_compute_options
from vlprompt.core.method import Method
from vlprompt.core.stage import Stage
from vlprompt.data.splits.label_hiding import reveal_name
from vlprompt.engine.evaluate import Scores, collect_outputs, evaluate
from vlprompt.engine.evaluate_unknown import UnknownAnswers, evaluate_against_unknown
from vlprompt.engine.label_scores import DEFAULT_THRESHOLD, choose_threshold, read_label_odds
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.events import EvaluationProgress, Listener
from vlprompt.results.prediction_files import THRESHOLD_FACT, PredictionFile, UnknownItems
from vlprompt.results.test_answers import TestAnswers, UnknownScores
from vlprompt.runtime.errors import UnknownClassError

TestScores = dict[str, dict[str, float]]  # metrics by test


@dataclass
class StageOutcome:
    """What the tests of a stage came to.

    Args:
        scores: metrics by test, and by "test/domain".
        class_accuracy: accuracy by class id, by test.
        prompt_usage: mean usage of each prompt of a pool, by test and "test/domain".
        answers: what was predicted for each item, by test; texts with responses or tags have none.
        confusion: class ids and `Scores.confusion`, by test; likewise.
        predictions: of each item with its logits, by test, where they are asked for; likewise.
        unknown_scores: of known and unknown items, where the stage has unknown tests.
        unknown_items: the unknown items with their answers, likewise.
        notes: scores of unknown classes that the method lacks, and why.
    """

    scores: TestScores = field(default_factory=dict)
    class_accuracy: TestScores = field(default_factory=dict)
    prompt_usage: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, TestAnswers] = field(default_factory=dict)
    confusion: dict[str, dict[str, Any]] = field(default_factory=dict)
    predictions: dict[str, PredictionFile] = field(default_factory=dict)
    unknown_scores: UnknownScores | None = None
    unknown_items: UnknownItems | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageTests:
    """Evaluates a method; each batch is an event.

    Args:
        method: what is evaluated.
        config: of the training, for the sizes of micro-batches.
        on_event: hears of each batch.
        origin: what `describe_predictions` returned, if the outcome is to have the predictions of each item; else None.
    """

    method: Method
    config: TrainConfig
    on_event: Listener | None = None
    origin: Mapping[str, Any] | None = None

    def evaluate(self, stage: Stage) -> StageOutcome:
        """Evaluate on the tests of what was seen."""
        outcome, threshold = StageOutcome(), self._choose_threshold(stage)
        for name, test in stage.tests.items():
            if stage.unknown_tests and name == next(iter(stage.tests)):
                scores = self._compare_with_unknown(name, stage, outcome)
            else:
                scores = self._evaluate_test(name, test, threshold)
            outcome.scores |= {
                name: scores.metrics,
                **{f"{name}/{k}": part for k, part in scores.domain_metrics.items()},
            }
            outcome.class_accuracy[name] = scores.class_accuracy
            outcome.prompt_usage |= {name if k is None else f"{name}/{k}": u for k, u in scores.prompt_usage.items()}
            if scores.answers is not None:
                outcome.answers[name] = TestAnswers(*scores.answers, names=tuple(map(str, test.names)))
                outcome.confusion[name] = {"classes": list(class_ids(test.names)), "counts": scores.confusion}
            if self.origin is not None:
                unknown = outcome.unknown_items if name == next(iter(stage.tests)) else None
                origin = {**self.origin, "test": name}
                outcome.predictions[name] = build_prediction_file(scores, test, origin, unknown)
        return outcome

    def evaluate_unseen(self, tests: dict[str, Split]) -> TestScores:
        """Return scores on tests of later lessons; {} where the method can't answer one of them."""
        scores = {}
        for name, test in tests.items():
            try:
                scores[name] = self._evaluate_test(name, test).metrics
            except UnknownClassError:
                return {}
        return scores

    def _compare_with_unknown(self, name: str, stage: Stage, outcome: StageOutcome) -> Scores:
        """Return the scores of the known test; add those against each set of unknown items to the outcome."""
        options = ComputeOptions(text_micro_batch=self.config.text_micro_batch)
        with apply_compute_options(self.method, options):
            comparison = evaluate_against_unknown(
                self.method,
                stage.tests[name],
                stage.unknown_tests,
                stage.unknown_scores,
                micro_batch_size=self.config.micro_batch_size,
                on_progress=lambda test, n_done, n: self._report(test or name, n_done, n),
            )
        outcome.scores |= {f"unknown/{unknown}": metrics for unknown, metrics in comparison.metrics.items()}
        outcome.unknown_scores = UnknownScores(comparison.names, comparison.known_values, comparison.unknown_values)
        outcome.unknown_items = build_unknown_items(outcome.unknown_scores, stage.unknown_tests, comparison.unknown)
        outcome.notes = comparison.notes
        return comparison.known

    def _report(self, name: str, n_done: int, n_images: int) -> None:
        if self.on_event:
            self.on_event(EvaluationProgress(name, n_done, n_images))

    def _choose_threshold(self, stage: Stage) -> float:
        """Return the threshold of labels that is best on the validation items, which may have several."""
        val = stage.lesson.val
        if val is None or not val.has_several_labels:
            return DEFAULT_THRESHOLD
        with apply_compute_options(self.method, ComputeOptions(text_micro_batch=self.config.text_micro_batch)):
            output = collect_outputs(self.method, val, micro_batch_size=self.config.micro_batch_size)
        return choose_threshold(*read_label_odds(output.logits, val))

    def _evaluate_test(self, name: str, test: Split, threshold: float = DEFAULT_THRESHOLD) -> Scores:
        options = ComputeOptions(text_micro_batch=self.config.text_micro_batch)
        with apply_compute_options(self.method, options):
            return evaluate(
                self.method,
                test,
                micro_batch_size=self.config.micro_batch_size,
                on_progress=partial(self._report, name),
                threshold=threshold,
            )


def build_unknown_items(
    scores: UnknownScores, tests: Mapping[str, Split], answers: Mapping[str, UnknownAnswers]
) -> UnknownItems:
    """Return the items of unknown classes for a file of predictions, one set after the other.

    Args:
        scores: of the known and of the unknown items.
        tests: the unknown items by set.
        answers: what was answered for them.
    """
    names = [(name, reveal_name(item)) for name, split in tests.items() for item in split.items]
    return UnknownItems(
        scores.names,
        scores.known,
        tuple(item for _, item in names),
        tuple(name for name, _ in names),
        torch.cat([answers[name].predicted for name in tests]),
        torch.cat([answers[name].logits for name in tests]),
        torch.cat([scores.unknown[name] for name in tests]),
    )


def build_prediction_file(
    scores: Scores, test: Split, origin: Mapping[str, Any], unknown: UnknownItems | None = None
) -> PredictionFile:
    """Return the predictions of a test; ValueError for texts with responses or tags, which have none.

    Args:
        scores: of the test.
        test: its items.
        origin: what `describe_predictions` returned, and the name of the test.
        unknown: what the test has of unknown classes.
    """
    if scores.logits is None:
        raise ValueError(
            "--keep-predictions: expected a test with classes, got texts with responses or tags. Leave it out."
        )
    facts = {key: value for key, value in origin.items() if key != "learned_class_ids"}
    if test.has_several_labels:
        labels, predicted = torch.tensor(test.labels), scores.logits.argmax(1)
        facts[THRESHOLD_FACT] = scores.metrics["threshold"]
    else:
        assert scores.answers is not None
        labels, predicted = scores.answers.labels.long(), scores.answers.predicted.long()
    return PredictionFile(
        tuple(map(reveal_name, test.items)),
        labels,
        predicted,
        scores.logits,
        tuple(map(str, test.names)),
        class_ids(test.names),
        tuple(origin["learned_class_ids"]),
        facts,
        unknown=unknown,
    )
