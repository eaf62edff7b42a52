"""Test a learned prompt on other datasets."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from vlprompt.config.build import build_task
from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names
from vlprompt.core.images import Preprocessing
from vlprompt.core.method import Method, Output
from vlprompt.data.dataset import Data
from vlprompt.data.loading import resolve_dataset
from vlprompt.data.sources import require_folder, select_layout
from vlprompt.data.splits.label_hiding import drop_labels
from vlprompt.engine.evaluate import Scores, collect_outputs, evaluate, iter_logits, score_outputs
from vlprompt.engine.evaluate_unknown import answer_unknown, find_scores
from vlprompt.engine.model_selection import collect_pseudo_labels
from vlprompt.engine.unknown_scores import SCORES, make_score_fn
from vlprompt.experiments.calibration.choice import Selection, choose_for_prompt, require_classes, require_numbers
from vlprompt.experiments.calibration.items import (
    ChosenItems,
    open_unknown,
    quote_classes,
    require_other_items,
    select_known,
)
from vlprompt.experiments.calibration.temperature import NoTemperatureError
from vlprompt.experiments.learned.decision import Decision
from vlprompt.experiments.learned.prompt import LearnedPrompt, require_one_label, restore_prompt
from vlprompt.experiments.learned.state import read_learned_state
from vlprompt.experiments.provenance import describe_predictions
from vlprompt.experiments.stage_tests import build_prediction_file, build_unknown_items
from vlprompt.metrics import accuracy, calibration_scores, unknown_scores
from vlprompt.results.comparability import DOMAIN
from vlprompt.results.plots.shots import plot_predictions
from vlprompt.results.prediction_files import UnknownItems, write_predictions
from vlprompt.results.test_answers import UnknownScores
from vlprompt.tasks.multi_label import open_label_sets
from vlprompt.tasks.online import draw_order
from vlprompt.tasks.text import Text

MAX_DRAWN_IMAGES = 40
LOST_THRESHOLD = "the threshold holds only for the classes that it was chosen among, so it is not applied here"


@dataclass(frozen=True)
class Evaluation:
    """What a test came to, in percent.

    Args:
        metrics: of the test; with a threshold also those of `REJECTION_METRICS`.
        unknown: score -> the metrics of `UNKNOWN_METRICS`.
        calibration: "before" and "after" temperature scaling, those of `CALIBRATION_METRICS`.
        decision: temperature and threshold.
        notes: what a reader should know.
        scores: of the test, with the prediction of each item.
        unknown_items: items of unknown classes with theirs.
    """

    metrics: dict[str, float]
    unknown: dict[str, dict[str, float]] = field(default_factory=dict)
    calibration: dict[str, dict[str, float]] = field(default_factory=dict)
    decision: Decision = field(default_factory=Decision)
    notes: tuple[str, ...] = ()
    scores: Scores | None = None
    unknown_items: UnknownItems | None = None


def evaluate_run(
    folder: Path,
    dataset: str | Data | None,
    backbone: str | None,
    device: str | None,
    skip_broken: bool,
    figure_path: Path | None = None,
    layout: str | None = None,
    on_note: Callable[[str], None] | None = None,
    selection: Selection | None = None,
    predictions_path: Path | None = None,
) -> Evaluation:
    """Score a learned prompt on the test split of a dataset, among its classes.

    Args:
        folder: of the run, or a model folder.
        dataset: None for what the run was tested on (the target of a run on domains).
        backbone: where the run's backbone is now; None for where it was.
        device: as `load` takes it.
        skip_broken: leave out images that can't be decoded.
        figure_path: where to draw some of its images.
        layout: of a folder, instead of the one that is recognised or that the run names.
        on_note: receives what was left out of the dataset, if anything was.
        selection: what is chosen before, and the unknown classes.
        predictions_path: where to write the predictions and logits of each item, in Parquet.
    """
    state, selection = read_learned_state(folder), selection or Selection()
    task = state.config["task"]
    if selection.unknown is not None:
        require_one_label(state, "--unknown")
    if selection.needs_validation:
        require_one_label(state, "--reject and --calibrate")
    if figure_path is not None:
        require_one_label(state, "--figure")
    if task["name"] == "text" and figure_path is not None:
        raise ValueError(
            f"--figure: expected a run on images, got {str(folder)!r}, a run on texts. Leave --figure out."
        )
    test, note = _open_test(task, dataset, skip_broken, layout)
    if on_note is not None and skip_broken and note:
        on_note(note)
    if selection.unknown is not None and dataset is None:
        test = select_known(test, state.names)
    unknown = None
    if selection.unknown is not None:
        unknown = open_unknown(task, test.names, selection.unknown, "test", skip_broken)
        require_other_items(test, unknown)
    is_plain = selection == Selection() and figure_path is None  # the test is run once
    restored = restore_prompt(state, backbone, device, allows_online=is_plain)
    prompt, note = _choose(restored, selection, skip_broken)
    if prompt.method.is_online:
        test = draw_order(test, task["seed"], 0)
        note = (*note, f"the test images are a stream, in the first order that seed {task['seed']} draws")
    evaluation = _evaluate(prompt, test, unknown, selection)
    evaluation = replace(evaluation, notes=(*evaluation.notes, *note))
    if predictions_path is not None:
        origin = describe_predictions(state.config, state.lessons) | {"test": "eval"}
        origin |= {} if dataset is None else {"dataset": str(dataset)}
        scores, unknown_items = cast(Scores, evaluation.scores), evaluation.unknown_items
        write_predictions(build_prediction_file(scores, test, origin, unknown_items), predictions_path)
    if figure_path is not None:
        _draw_test(prompt.method, test, task["name"] == DOMAIN, figure_path)
    return evaluation


def _choose(prompt: LearnedPrompt, selection: Selection, skip_broken: bool) -> tuple[LearnedPrompt, tuple[str, ...]]:
    """Return a prompt with the decision of a selection; without a best temperature with that of before, and why."""
    try:
        return choose_for_prompt(prompt, selection, skip_broken), ()
    except NoTemperatureError as error:
        uncalibrated = replace(selection, calibrate=False)
        note = f"temperature left at {prompt.decision.temperature:g}: {error}"
        return choose_for_prompt(prompt, uncalibrated, skip_broken), (note,)


def _evaluate(prompt: LearnedPrompt, test: Split, unknown: ChosenItems | None, selection: Selection) -> Evaluation:
    """Test a prompt with its decision, and against items of unknown classes."""
    method, decision = prompt.method, prompt.decide_among(test.names)
    if decision.labels is not None:
        scores = evaluate(method, test, threshold=decision.labels.threshold)
        notes = () if decision == prompt.decision else (LOST_THRESHOLD,)
        return Evaluation(scores.metrics, decision=decision, notes=notes, scores=scores)
    if decision == Decision() and not selection.needs_validation and unknown is None:
        scores = evaluate(method, test)
        return Evaluation(scores.metrics, scores=scores)
    require_classes(test)
    prepared, notes = prompt.prepare(test.names), tuple[str, ...]()
    names = (
        [decision.score] if unknown is None else list(dict.fromkeys((decision.score, *(selection.scores or SCORES))))
    )
    if unknown is not None and selection.scores is None:
        names, notes = find_scores(method, test, prepared, names)
    if decision != prompt.decision:
        notes = (*notes, LOST_THRESHOLD)
    score_fn = make_score_fn(method, names, decision.temperature)
    output = collect_outputs(method, test, prepared=prepared, score_fn=score_fn)
    known_scores, labels = require_numbers(cast(Tensor, output.scores)), torch.tensor(test.labels)
    scores, rows = score_outputs(output, test, decision.temperature), dict[str, dict[str, float]]()
    metrics, items = dict(scores.metrics), None
    if decision.threshold is not None:
        metrics |= _score_rejection(output, known_scores[:, 0], labels, decision.threshold)
    if unknown is not None:
        others = collect_outputs(method, unknown.split, prepared=prepared, score_fn=score_fn)
        other_scores = require_numbers(cast(Tensor, others.scores))
        columns = {name: names.index(name) for name in selection.scores or names}
        rows = {name: unknown_scores(known_scores[:, k], other_scores[:, k]) for name, k in columns.items()}
        if decision.threshold is not None:
            metrics["unknown_accepted"] = 100 * (other_scores[:, 0] >= decision.threshold).double().mean().item()
        notes = (*notes, *filter(None, [unknown.note]), _describe_sides(test, unknown))
        all_scores = UnknownScores(tuple(names), known_scores, {unknown.dataset: other_scores})
        answers = {unknown.dataset: answer_unknown(others, decision.temperature)}
        items = build_unknown_items(all_scores, {unknown.dataset: unknown.split}, answers)
    calibration = _score_calibration(output, labels, decision, selection)
    return Evaluation(metrics, rows, calibration, decision, notes, scores, items)


def _describe_sides(test: Split, unknown: ChosenItems) -> str:
    """Return which items were compared: a class by another name in both can't be recognised, but seen by a reader."""
    present = [name for name, count in zip(unknown.split.names, unknown.split.count_per_class(), strict=True) if count]
    return (
        f"{len(test)} known test items against {len(unknown.split)} unknown ones of {unknown.dataset}: "
        f"{quote_classes(test.names)} against {quote_classes(present)}"
    )


def _score_rejection(output: Output, scores: Tensor, labels: Tensor, threshold: float) -> dict[str, float]:
    """Return the metrics of `REJECTION_METRICS`; accepted_accuracy only where something is accepted."""
    accepted = scores >= threshold
    coverage = {"coverage": 100 * accepted.double().mean().item()}
    right = output.logits.argmax(1)[accepted]
    return coverage | ({"accepted_accuracy": accuracy(right, labels[accepted])} if len(right) else {})


def _score_calibration(
    output: Output, labels: Tensor, decision: Decision, selection: Selection
) -> dict[str, dict[str, float]]:
    if not selection.calibrate:
        return {}
    logits = output.logits.double()
    temperatures = {"before": 1.0} | ({} if decision.temperature == 1 else {"after": decision.temperature})
    return {when: calibration_scores((logits / t).softmax(1), labels) for when, t in temperatures.items()}


def _open_test(
    task: dict[str, Any], dataset: str | Data | None, skip_broken: bool, layout: str | None
) -> tuple[Split, str]:
    """Return the test split, and the note of its dataset."""
    if task["name"] == "text":
        require_folder(layout, str(task["dataset"] if dataset is None else dataset))
        settings = task | {"skip_broken": skip_broken}
        if dataset is not None:  # with its own templates
            settings |= {"dataset": dataset, "prompt_template": None, "plain_template": None}
        text_task = cast(Text, build_task(settings))
        return text_task.test, text_task.data.note
    if dataset is None and task["name"] == DOMAIN:
        domain_task = build_task(task | {"skip_broken": skip_broken} | ({} if layout is None else {"layout": layout}))
        [*_, stage] = domain_task.stages()
        return stage.tests["target"], domain_task.protocol["note"]
    own = cast(str, task["dataset"])
    layout = layout if dataset is not None else layout or select_layout(task.get("layout"), own)
    source = own if dataset is None else dataset
    if task["name"] == "multi_label":
        data = open_label_sets(source, task["reading"], skip_broken=skip_broken, layout=layout)
    else:
        data = resolve_dataset(source, None, skip_broken, layout=layout)
    return data.test, data.note


def _draw_test(method: Method, test: Split, is_domain: bool, path: Path) -> None:
    """Draw images of a test with what is predicted, and with pseudo-labels where the method gives some."""
    n, limit = len(test), MAX_DRAWN_IMAGES
    drawn = test.select([i * n // limit for i in range(limit)] if n > limit else range(n))
    probabilities, labels = torch.cat(list(iter_logits(method, drawn))).softmax(1), torch.tensor(drawn.labels)
    captions, is_correct = _format_top_classes(probabilities, drawn.names), (probabilities.argmax(1) == labels).tolist()
    if is_domain:
        pseudo_labels = _format_pseudo_labels(method, drawn)
        captions = [f"{a}\n{b}" for a, b in zip(captions, pseudo_labels, strict=True)] if pseudo_labels else captions
    captions = [
        caption if correct else f"{caption}\nis {drawn.names[label]}"
        for caption, correct, label in zip(captions, is_correct, drawn.labels, strict=True)
    ]
    pixels = [item.pixels(Preprocessing((96, 96)), None).clamp(0, 1) for item in drawn.items]
    plot_predictions([image.permute(1, 2, 0).numpy() for image in pixels], captions, is_correct, path)


def _format_pseudo_labels(method: Method, split: Split) -> list[str]:
    """Return the pseudo-label of each image, in parentheses where the method would not train on it; [] without any."""
    pseudo_labels = collect_pseudo_labels(method, drop_labels(split), method.precompute(split.names))
    if pseudo_labels is None:
        return []
    probabilities, is_confident = pseudo_labels
    if not bool(is_confident.any()):  # the images that UPL trains on are not among these
        is_confident = ~is_confident
    kind = "pseudo" if method.needs_unlabelled else "zero-shot"
    classes = zip(_format_top_classes(probabilities, split.names), is_confident.tolist(), strict=True)
    return [f"{kind} {text if confident else f'({text})'}" for text, confident in classes]


def _format_top_classes(probabilities: Tensor, names: Names) -> list[str]:
    """Return the most probable class of each row (N, C), with its probability."""
    return [f"{names[int(k)]} {float(p):.2f}" for p, k in zip(*probabilities.max(1), strict=True)]
