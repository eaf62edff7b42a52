"""Scores of a split, and the answers behind them; nothing here is differentiated."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlprompt.core.batch import Split, Unlabelled
from vlprompt.core.class_names import ids
from vlprompt.core.introspection import kept_of
from vlprompt.core.method import Method, Output
from vlprompt.core.texts import answered
from vlprompt.data.images.prefetch import ahead
from vlprompt.engine.evaluate_text import numbers
from vlprompt.metrics import accuracy, classified, effective_number, homes, named_metric, per_class
from vlprompt.runtime import collectives


@torch.no_grad()
def outputs(method: Method, split: Split | Unlabelled, batch: int = 100, micro_batch: int | None = None,
            prepared: Any = None) -> Iterator[Output]:  # fmt: skip
    """Answers to images in order, in eval mode, on the CPU, without features.

    Of several processes each answers some batches, and all have all answers. Texts are prepared once; prepared: they
    were already, for the names of the split.
    """
    was = method.training
    method.eval()
    try:
        ready = method.prepare(split.names, method.fixed(split.names)) if prepared is None else prepared
        answer = lambda whole: _joined([method(part.inputs, ready) for part in whole.split(micro_batch)])  # noqa: E731
        yield from collectives.shared(ahead(split.batches(batch)), answer, kept_of(method))
    finally:
        method.train(was)


def _joined(parts: Sequence[Output]) -> Output:
    """The answers of several batches, on the CPU."""

    def of(name: str) -> Tensor | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else torch.cat([t.cpu() for t in found])

    return Output(torch.cat([part.logits.float().cpu() for part in parts]), used=of("used"), lesson=of("lesson"),
                  silent=of("silent"))  # fmt: skip


def answers(method: Method, split: Split | Unlabelled, batch: int = 100, micro_batch: int | None = None,
            prepared: Any = None) -> Iterator[Tensor]:  # fmt: skip
    """Logits (B, C) of images in order, as `outputs` gives them."""
    return (out.logits for out in outputs(method, split, batch, micro_batch, prepared))


@dataclass(frozen=True)
class Scores:
    """What a split's answers come to, in percent: numbers by name, and the accuracy of each class by its id.

    parts: of each domain, by its name, accuracy and images; where no class is in two domains also identity, the share
    of its images whose answer is a class of that domain; where a method guesses the lesson also chosen, how often it is
    the domain's number. used: the mean share of each prompt of a pool, of each domain and of all (None).
    """

    numbers: dict[str, float]
    classes: dict[str, float]
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    used: dict[str | None, list[float]] = field(default_factory=dict)


def evaluate(
    method: Method,
    split: Split,
    batch: int = 100,
    micro_batch: int | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Scores:
    """accuracy, class_mean (mean of the accuracies per class), macro_f1 and calibration_error; of pools prompts_used.

    Of methods that may find no answer also unanswered, the share of those, which are wrong. Of texts that are
    answered by text or word by word, what evaluate_text says.

    watch: called with the images done and their number. ValueError for an empty split.
    """
    if not len(split):
        raise ValueError("there is nothing to evaluate: the split has no images")
    if answered(split.items) != "class":
        was = method.training
        try:
            return Scores(numbers(method.eval(), split, batch, micro_batch, watch), {})
        finally:
            method.train(was)
    found, done = list[Output](), 0
    for part in outputs(method, split, batch, micro_batch):
        found.append(part)
        done += len(part.logits)
        if watch:
            watch(done, len(split))
    whole, labels, classes = _joined(found), torch.tensor(split.labels), len(split.names)
    logits, used, lesson = whole.logits, whole.used, whole.lesson
    predicted = logits.argmax(1)
    if whole.silent is not None:
        predicted[whole.silent] = classes  # none of them
    told = classified(predicted, logits.softmax(1), labels, classes)
    if whole.silent is not None:
        told["unanswered"] = 100 * float(whole.silent.double().mean())
    if used is not None:
        told["prompts_used"] = effective_number(used.mean(0))
    told |= named_metric(split.info.get("metric"), predicted, labels)
    each = per_class(predicted, labels, classes).tolist()
    of_classes = {i: value for i, value in zip(ids(split.names), each, strict=True) if value == value}
    shares: dict[str | None, list[float]] = {} if used is None else {None: used.mean(0).tolist()}
    parts = dict[str, dict[str, float]]()
    if split.domains is not None:
        domains = torch.tensor(split.domains)
        names, home = split.info.get("domains"), homes(labels, domains, classes)
        for k in sorted(set(split.domains)):
            here, name = domains == k, str(names[k]) if isinstance(names, list | tuple) else str(k)
            parts[name] = {"accuracy": accuracy(predicted[here], labels[here]), "images": int(here.sum())}
            if home is not None:
                parts[name]["identity"] = accuracy(home[predicted[here]], domains[here])
            if lesson is not None:
                parts[name]["chosen"] = accuracy(lesson[here], domains[here])
            if used is not None:
                shares[name] = used[here].mean(0).tolist()
    return Scores(told, of_classes, parts, shares)
