"""Test a learned prompt on other datasets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from vlprompt.config.build import build_task
from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names
from vlprompt.core.images import Preprocessing
from vlprompt.core.method import Method
from vlprompt.data.dataset import Data
from vlprompt.data.loading import resolve_dataset
from vlprompt.data.sources import require_folder, select_layout
from vlprompt.data.splits.label_hiding import drop_labels
from vlprompt.engine.evaluate import evaluate, iter_logits
from vlprompt.engine.model_selection import collect_pseudo_labels
from vlprompt.experiments.learned.prompt import restore_prompt
from vlprompt.experiments.learned.state import read_learned_state
from vlprompt.results.comparability import DOMAIN
from vlprompt.results.plots.shots import plot_predictions
from vlprompt.tasks.text import Text

MAX_DRAWN_IMAGES = 40


def evaluate_run(
    folder: Path,
    dataset: str | Data | None,
    backbone: str | None,
    device: str | None,
    skip_broken: bool,
    figure_path: Path | None = None,
    layout: str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Score a run on the test split of a dataset, among its classes (percent).

    Args:
        folder: of the run.
        dataset: None for what the run was tested on (the target of a run on domains).
        backbone: where the run's backbone is now; None for where it was.
        device: as `load` takes it.
        skip_broken: leave out images that can't be decoded.
        figure_path: where to draw some of its images.
        layout: of a folder, instead of the one that is recognised or that the run names.
        on_note: receives what was left out of the dataset, if anything was.
    """
    state = read_learned_state(folder)
    task = state.config["task"]
    if task["name"] == "text" and figure_path is not None:
        raise ValueError(
            f"--figure: expected a run on images, got {str(folder)!r}, a run on texts. Leave --figure out."
        )
    test, note = _open_test(task, dataset, skip_broken, layout)
    if on_note is not None and skip_broken and note:
        on_note(note)
    method = restore_prompt(state, backbone, device).method
    metrics = evaluate(method, test).metrics
    if figure_path is not None:
        _draw_test(method, test, task["name"] == DOMAIN, figure_path)
    return metrics


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
    data = resolve_dataset(own if dataset is None else dataset, None, skip_broken, layout=layout)
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
