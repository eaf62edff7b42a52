"""Choose temperature and threshold of a learned prompt on validation items."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.texts import find_answer_kind
from vlprompt.engine.evaluate import collect_outputs
from vlprompt.engine.unknown_scores import make_score_fn, require_score
from vlprompt.experiments.calibration.items import (
    ChosenItems,
    open_unknown,
    open_validation,
    require_other_items,
)
from vlprompt.experiments.calibration.temperature import fit_temperature
from vlprompt.experiments.calibration.threshold import Rejection, choose_threshold, parse_rejection
from vlprompt.experiments.learned.decision import Decision
from vlprompt.experiments.learned.prompt import LearnedPrompt, require_one_label, restore_prompt
from vlprompt.experiments.learned.state import LearnedState
from vlprompt.metrics import accuracy, calibration_scores


@dataclass(frozen=True)
class Selection:
    """What is chosen on which items, and which unknown classes a prompt is tested against.

    Args:
        unknown: a dataset of other classes.
        scores: which scores of unknown classes are reported, the one that is chosen by with a threshold; None for all
            that the prompt has, and for the prompt's own.
        calibrate: whether a temperature is fitted on validation items.
        reject: which threshold is chosen, as `choose_decision` takes it.
        validation: a dataset whose validation split is taken instead of that of the run.
    """

    unknown: str | None = None
    scores: tuple[str, ...] | None = None
    calibrate: bool = False
    reject: str | None = None
    validation: str | None = None

    @property
    def needs_validation(self) -> bool:
        return self.calibrate or self.reject is not None

    def require_use(self, command: str) -> None:
        """Raise ValueError for a setting that changes nothing without another one, of `eval` or `save`."""
        uses_unknown = self.reject is not None if command == "save" else True
        if self.validation is not None and not self.needs_validation:
            raise ValueError("--validation: expected --reject or --calibrate with it, got neither. Add one of them.")
        if self.unknown is not None and not uses_unknown:
            raise ValueError("--unknown: expected --reject with it, got none. Add --reject fpr=0.05.")
        if self.scores is not None and self.reject is None and (self.unknown is None or not uses_unknown):
            raise ValueError("--score: expected --reject with it, or eval --unknown, got neither. Add one of them.")
        if self.scores is not None and self.reject is not None and len(self.scores) > 1:
            raise ValueError(
                f"--score: expected one score for --reject, got {', '.join(self.scores)}. Name the one to choose by."
            )


def choose_for_prompt(prompt: LearnedPrompt, selection: Selection, skip_broken: bool = False) -> LearnedPrompt:
    """Return a learned prompt with the decision that a selection asks for, else with its own."""
    if not selection.needs_validation:
        return prompt
    require_one_label(prompt.state, "--reject and --calibrate")
    state, names, unknown = prompt.state, prompt.names, None
    validation = open_validation(state, names, selection.validation, skip_broken)
    if selection.unknown is not None and selection.reject is not None:
        unknown = open_unknown(state.config["task"], names, selection.unknown, "val", skip_broken)
        require_other_items(validation.split, unknown)
    score = selection.scores[0] if selection.scores and selection.reject is not None else Decision().score
    decision = choose_decision(
        prompt, validation, score=score, reject=selection.reject, calibrate=selection.calibrate, unknown=unknown
    )
    return prompt.with_decision(decision)


def choose_for_state(
    state: LearnedState, selection: Selection, backbone: str | None, device: str | None
) -> LearnedState:
    """Return a learned state with the decision that a selection asks for; arguments as in `restore_prompt`."""
    return choose_for_prompt(restore_prompt(state, backbone, device), selection).state


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
