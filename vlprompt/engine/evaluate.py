"""Evaluate a method on a split: outputs batch by batch, and the scores they come to. No gradients are computed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vlprompt.core.batch import Batch, Inputs, Split, Unlabelled
from vlprompt.core.class_names import class_ids
from vlprompt.core.head import Prepared
from vlprompt.core.introspection import feature_caches
from vlprompt.core.method import Method, Output
from vlprompt.core.texts import find_answer_kind
from vlprompt.data.images.prefetch import prefetch_images
from vlprompt.engine.evaluate_text import evaluate_texts
from vlprompt.engine.label_scores import DEFAULT_THRESHOLD, read_label_odds, score_labels
from vlprompt.metrics import (
    accuracy,
    benchmark_metric,
    classification_scores,
    confusion_matrix,
    effective_prompts,
    find_class_domains,
    per_class_accuracy,
)
from vlprompt.runtime import collectives
from vlprompt.runtime.errors import NonFiniteError


@torch.no_grad()
def iter_outputs(
    method: Method,
    split: Split | Unlabelled,
    batch_size: int = 100,
    micro_batch_size: int | None = None,
    prepared: Prepared = None,
    score_fn: Callable[[Inputs, Output], Tensor] | None = None,
) -> Iterator[Output]:
    """Yield the outputs of a split in order, in eval mode, on the CPU, without features.

    In a process group each process computes some of the batches, of an online method all of them, and every process
    receives all outputs.

    Args:
        micro_batch_size: items per forward pass (None: the whole batch); the outputs are the same.
        prepared: what `method.prepare` returned for the classes to choose from; default: prepared here, once, for the
            names of the split.
        score_fn: (inputs, output) -> scores (B, S) of each output, which sees the features too.

    Raises:
        NonFiniteError: for a logit that is NaN.
    """
    was_training = method.training
    method.eval()
    try:
        if prepared is None:
            prepared = method.prepare(split.names, method.precompute(split.names))

        def answer(inputs: Inputs) -> Output:
            output = method(inputs, prepared)
            return output if score_fn is None else output._replace(scores=score_fn(inputs, output))

        def compute(batch: Batch) -> Output:
            return _concatenate_outputs([answer(part.inputs) for part in batch.micro_batches(micro_batch_size)])

        batches = prefetch_images(split.batches(batch_size))
        if method.is_online:  # each answer needs all images before it
            yield from map(_require_numbers, map(compute, batches))
            return
        yield from map(_require_numbers, collectives.map_distributed(batches, compute, feature_caches(method)))
    finally:
        method.train(was_training)


def _require_numbers(output: Output) -> Output:
    """Return an output; NonFiniteError where a logit is NaN, of which argmax would make a prediction."""
    is_nan = output.logits.isnan().any(1)
    if bool(is_nan.any()):
        raise NonFiniteError(
            f"test: expected logits that are numbers, got NaN for {int(is_nan.sum())} of {len(is_nan)} items. Check "
            "the weights of the backbone, or train with a smaller train.lr or another train.precision."
        )
    return output


def _concatenate_outputs(outputs: Sequence[Output]) -> Output:
    def concatenate(name: str) -> Tensor | None:
        tensors = [getattr(output, name) for output in outputs]
        return None if tensors[0] is None else torch.cat([t.cpu() for t in tensors])

    return Output(
        torch.cat([output.logits.float().cpu() for output in outputs]),
        prompt_usage=concatenate("prompt_usage"),
        predicted_lesson=concatenate("predicted_lesson"),
        unanswered=concatenate("unanswered"),
        scores=concatenate("scores"),
    )


def iter_logits(
    method: Method,
    split: Split | Unlabelled,
    batch_size: int = 100,
    micro_batch_size: int | None = None,
    prepared: Prepared = None,
) -> Iterator[Tensor]:
    """Yield logits (B, C) of a split in order; arguments as in `iter_outputs`."""
    return (output.logits for output in iter_outputs(method, split, batch_size, micro_batch_size, prepared))


class Answers(NamedTuple):
    """labels (N,), predicted classes (N,) and their probabilities (N,) of the items of a split, in order."""

    labels: Tensor
    predicted: Tensor
    probabilities: Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of a split, in percent.

    Args:
        metrics: metrics by name.
        class_accuracy: class id -> accuracy; classes without items are left out.
        domain_metrics: domain name -> accuracy and images. Where no class is in two domains also identity, the
            fraction of the domain's images that are predicted as a class of that domain; where the method predicts the
            lesson also chosen, the fraction whose predicted lesson is the domain's number.
        prompt_usage: mean usage (M,) of each prompt of a pool, of every domain by its name and of all images (None).
        answers: of each item; None for texts with responses or tags.
        confusion: (class, answered class, items) as numbers, where there are any; the answer C is none.
        logits: (N, C) of the items, divided by the temperature, or of several labels their odds as logarithms; None
            likewise.
    """

    metrics: dict[str, float]
    class_accuracy: dict[str, float]
    domain_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    prompt_usage: dict[str | None, list[float]] = field(default_factory=dict)
    answers: Answers | None = None
    confusion: list[list[int]] = field(default_factory=list)
    logits: Tensor | None = None


def evaluate(
    method: Method,
    split: Split,
    batch_size: int = 100,
    micro_batch_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    threshold: float = DEFAULT_THRESHOLD,
) -> Scores:
    """Evaluate a method on a split.

    Metrics are accuracy, class_mean (mean of the per-class accuracies), macro_f1 and calibration_error; of prompt pools
    also prompts_used; of methods that may find no answer also unanswered (counted as wrong); of texts with responses or
    tags what `evaluate_texts` returns; of items with several labels LABEL_METRICS.

    Args:
        on_progress: called after each batch with (items done, items in all).
        threshold: of items with several labels, the odds above which a label is predicted, as a logarithm.

    Raises:
        ValueError: for an empty split.
    """
    if not len(split):
        raise ValueError("evaluate: expected a split with images, got an empty one. Take another split or fewer parts.")
    if split.has_several_labels:
        output = collect_outputs(method, split, batch_size, micro_batch_size, on_progress=on_progress)
        odds, targets = read_label_odds(output.logits, split)
        return Scores(score_labels(odds, targets, threshold), {}, logits=odds)
    if find_answer_kind(split.items) != "class":
        was_training = method.training
        try:
            return Scores(evaluate_texts(method.eval(), split, batch_size, micro_batch_size, on_progress), {})
        finally:
            method.train(was_training)
    return score_outputs(collect_outputs(method, split, batch_size, micro_batch_size, on_progress=on_progress), split)


def collect_outputs(
    method: Method,
    split: Split,
    batch_size: int = 100,
    micro_batch_size: int | None = None,
    prepared: Prepared = None,
    score_fn: Callable[[Inputs, Output], Tensor] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Output:
    """Return the outputs of a split as one; arguments as in `iter_outputs` and `evaluate`."""
    outputs, n_done = list[Output](), 0
    for output in iter_outputs(method, split, batch_size, micro_batch_size, prepared, score_fn):
        outputs.append(output)
        n_done += len(output.logits)
        if on_progress:
            on_progress(n_done, len(split))
    return _concatenate_outputs(outputs)


def score_outputs(output: Output, split: Split, temperature: float = 1.0) -> Scores:
    """Score the outputs (N, C) of a split; logits are divided by the temperature before the softmax."""
    labels, n_classes, usage = torch.tensor(split.labels), len(split.names), output.prompt_usage
    predicted = predict_classes(output)
    logits = output.logits / temperature
    probabilities = logits.softmax(1)
    metrics = classification_scores(predicted, probabilities, labels, n_classes)
    if output.unanswered is not None:
        metrics["unanswered"] = 100 * float(output.unanswered.double().mean())
    if usage is not None:
        metrics["prompts_used"] = effective_prompts(usage.mean(0))
    metrics |= benchmark_metric(split.info.get("metric"), predicted, labels)
    accuracies = zip(class_ids(split.names), per_class_accuracy(predicted, labels, n_classes).tolist(), strict=True)
    class_accuracy = {class_id: value for class_id, value in accuracies if value == value}  # NaN: no items
    prompt_usage: dict[str | None, list[float]] = {} if usage is None else {None: usage.mean(0).tolist()}
    domain_metrics = dict[str, dict[str, float]]()
    if split.domains is not None:
        domain_metrics, usage_by_domain = _score_domains(output, predicted, labels, split)
        prompt_usage |= usage_by_domain
    answers = Answers(labels.int(), predicted.int(), probabilities.amax(1))
    counts = confusion_matrix(predicted, labels, n_classes)
    confusion = [[i, j, int(counts[i, j])] for i, j in counts.nonzero().tolist()]
    return Scores(metrics, class_accuracy, domain_metrics, prompt_usage, answers, confusion, logits)


def predict_classes(output: Output) -> Tensor:
    """Return the answered class (N,) of each item; C where there is none, which is wrong for every label."""
    predicted = output.logits.argmax(1)
    if output.unanswered is not None:
        predicted[output.unanswered] = output.logits.shape[1]
    return predicted


def _score_domains(
    output: Output, predicted: Tensor, labels: Tensor, split: Split
) -> tuple[dict[str, dict[str, float]], dict[str | None, list[float]]]:
    """Metrics and prompt usage of each domain of a split, by the domain's name."""
    domains, names = torch.tensor(split.domains), split.info.get("domains")
    class_domains = find_class_domains(labels, domains, len(split.names))
    metrics, usage = dict[str, dict[str, float]](), dict[str | None, list[float]]()
    for k in sorted(set(split.domains or ())):
        in_domain, name = domains == k, str(names[k]) if isinstance(names, list | tuple) else str(k)
        metrics[name] = {"accuracy": accuracy(predicted[in_domain], labels[in_domain]), "images": int(in_domain.sum())}
        if class_domains is not None:
            metrics[name]["identity"] = accuracy(class_domains[predicted[in_domain]], domains[in_domain])
        if output.predicted_lesson is not None:
            metrics[name]["chosen"] = accuracy(output.predicted_lesson[in_domain], domains[in_domain])
        if output.prompt_usage is not None:
            usage[name] = output.prompt_usage[in_domain].mean(0).tolist()
    return metrics, usage
