"""Evaluate a method on the tests of a stage."""

from dataclasses import dataclass, field

from vlprompt.core.batch import Split
from vlprompt.core.compute_options import ComputeOptions
from vlprompt.core.introspection import apply_compute_options
from vlprompt.core.method import Method
from vlprompt.core.stage import Stage
from vlprompt.engine.evaluate import Scores, collect_outputs, evaluate
from vlprompt.engine.label_scores import DEFAULT_THRESHOLD, choose_threshold, label_rows
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.events import EvaluationProgress, Listener
from vlprompt.results.test_answers import TestAnswers
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
    """

    scores: TestScores = field(default_factory=dict)
    class_accuracy: TestScores = field(default_factory=dict)
    prompt_usage: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, TestAnswers] = field(default_factory=dict)


@dataclass(frozen=True)
class StageTests:
    """Evaluates a method; each batch is an event.

    Args:
        method: what is evaluated.
        config: of the training, for the sizes of micro-batches.
        on_event: hears of each batch.
    """

    method: Method
    config: TrainConfig
    on_event: Listener | None = None

    def evaluate(self, stage: Stage) -> StageOutcome:
        """Evaluate on the tests of what was seen."""
        outcome, threshold = StageOutcome(), self._choose_threshold(stage)
        for name, test in stage.tests.items():
            scores = self._evaluate_test(name, test, threshold)
            outcome.scores |= {
                name: scores.metrics,
                **{f"{name}/{k}": part for k, part in scores.domain_metrics.items()},
            }
            outcome.class_accuracy[name] = scores.class_accuracy
            outcome.prompt_usage |= {name if k is None else f"{name}/{k}": u for k, u in scores.prompt_usage.items()}
            if scores.answers is not None:
                outcome.answers[name] = TestAnswers(*scores.answers, names=tuple(map(str, test.names)))
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

    def _choose_threshold(self, stage: Stage) -> float:
        """Return the threshold of labels that is best on the validation items, which may have several."""
        val = stage.lesson.val
        if val is None or not val.has_several_labels:
            return DEFAULT_THRESHOLD
        with apply_compute_options(self.method, ComputeOptions(text_micro_batch=self.config.text_micro_batch)):
            output = collect_outputs(self.method, val, micro_batch_size=self.config.micro_batch_size)
        return choose_threshold(val.label_loss.read(output.logits), label_rows(val))

    def _evaluate_test(self, name: str, test: Split, threshold: float = DEFAULT_THRESHOLD) -> Scores:
        def report(n_done: int, n_images: int) -> None:
            if self.on_event:
                self.on_event(EvaluationProgress(name, n_done, n_images))

        options = ComputeOptions(text_micro_batch=self.config.text_micro_batch)
        with apply_compute_options(self.method, options):
            return evaluate(
                self.method,
                test,
                micro_batch_size=self.config.micro_batch_size,
                on_progress=report,
                threshold=threshold,
            )
