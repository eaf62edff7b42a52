"""Choose temperature and threshold of a learned prompt on validation items."""

from typing import Any

import torch
from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.texts import find_answer_kind
from vlprompt.engine.evaluate import collect_outputs
from vlprompt.engine.unknown_scores import make_score_fn, require_score
from vlprompt.experiments.calibration.items import ChosenItems
from vlprompt.experiments.calibration.temperature import fit_temperature
from vlprompt.experiments.calibration.threshold import Rejection, choose_threshold, parse_rejection
from vlprompt.experiments.learned.decision import Decision
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.metrics import accuracy, calibration_scores


def choose_decision(
    prompt: LearnedPrompt,
    validation: ChosenItems,
    *,
    score: str = "msp",
    reject: str | float | None = None,
    calibrate: bool = False,
    unknown: ChosenItems | None = None,
) -> Decision:
    """Choose how the logits of a learned prompt become an answer.

    Args:
        prompt: the learned prompt; its own decision is not looked at.
        validation: items of its classes that were not trained on, labelled among `prompt.names`.
        score: which score says how well an item is known, a key of `SCORES`.
        reject: 0.95 to accept this share of the validation items, "fpr=0.05" to accept at most this share of the
            unknown ones; None accepts all.
        calibrate: whether a temperature is fitted, with the least negative log-likelihood of the validation items.
        unknown: items of other classes, for a false-positive rate.

    Returns:
        The decision, whose facts name the items and what they came to, in percent.

    Raises:
        ValueError: for a score that the prompt does not have, a share out of range, a false-positive rate without
            unknown items, items that are answered by texts, and where no temperature is best.
    """
    require_score(score)
    rejection = None if reject is None else parse_rejection(reject)
    if rejection is not None and rejection.kind == "fpr" and unknown is None:
        raise ValueError(f"--reject: expected items of unknown classes for {reject}, got none. Name some by --unknown.")
    require_classes(validation.split)
    logits, labels = _compute(prompt, validation.split)[0], torch.tensor(validation.split.labels)
    facts: dict[str, Any] = {"validation": validation.describe()}
    temperature = fit_temperature(logits, labels) if calibrate else 1.0
    if calibrate:
        facts["before"] = calibration_scores(logits.double().softmax(1), labels)
        facts["after"] = calibration_scores((logits.double() / temperature).softmax(1), labels)
    if rejection is None:
        return Decision(temperature, score, None, facts)
    return _add_threshold(prompt, validation, unknown, rejection, Decision(temperature, score, None, facts))


def require_classes(split: Split) -> None:
    """Raise ValueError for texts that are answered by a response or by tags."""
    if (kind := find_answer_kind(split.items)) != "class":
        raise ValueError(
            f"--reject, --calibrate and --unknown: expected items that are answered by a class, got texts answered by "
            f"a {kind}. Leave these options out."
        )


def _compute(prompt: LearnedPrompt, split: Split, decision: Decision | None = None) -> tuple[Tensor, Tensor]:
    """Return the logits (N, C) among the classes of the prompt, and the scores (N,) of a decision."""
    score_fn = None
    if decision is not None:
        score_fn = make_score_fn(prompt.method, [decision.score], decision.temperature)
    output = collect_outputs(prompt.method, split, prepared=prompt.prepare(), score_fn=score_fn)
    return output.logits, output.logits.amax(1) if output.scores is None else require_numbers(output.scores[:, 0])


def require_numbers(scores: Tensor) -> Tensor:
    """Return scores; ValueError where one is NaN, which would be neither accepted nor rejected."""
    if n_nan := int(scores.isnan().sum()):
        raise ValueError(f"score: expected numbers, got {n_nan} NaN of {len(scores)}. Check the backbone's weights.")
    return scores


def _add_threshold(
    prompt: LearnedPrompt, validation: ChosenItems, unknown: ChosenItems | None, rejection: Rejection, base: Decision
) -> Decision:
    """Return the decision with a threshold, and with what the items came to."""
    logits, known_scores = _compute(prompt, validation.split, base)
    unknown_scores = None if unknown is None else _compute(prompt, unknown.split, base)[1]
    threshold = choose_threshold(rejection, known_scores, unknown_scores)
    is_accepted = known_scores >= threshold
    facts = {**base.facts, "reject": f"{rejection.kind} {float(rejection.share)}"}
    facts["coverage"] = 100 * is_accepted.double().mean().item()
    if bool(is_accepted.any()):
        labels = torch.tensor(validation.split.labels)
        facts["accepted_accuracy"] = accuracy(logits.argmax(1)[is_accepted], labels[is_accepted])
    if unknown is not None and unknown_scores is not None:
        facts["unknown"] = unknown.describe()
        facts["unknown_accepted"] = 100 * (unknown_scores >= threshold).double().mean().item()
    return Decision(base.temperature, base.score, threshold, facts)
