"""Using what a run has learned: predictions on image files, tests on other datasets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlprompt.config.build import build_task
from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names
from vlprompt.core.images import Look
from vlprompt.data.dataset import Data
from vlprompt.data.images.decoding import file_item, open_picture
from vlprompt.data.loading import given
from vlprompt.data.splits.label_hiding import unlabelled
from vlprompt.engine.evaluate import answers, evaluate
from vlprompt.engine.model_selection import pseudo_labels
from vlprompt.experiments.restore import restored
from vlprompt.results.comparability import DOMAIN
from vlprompt.results.plots.shots import predictions
from vlprompt.results.run_folder import Folder


@dataclass(frozen=True)
class Prediction:
    """Probabilities of the classes, best first."""

    path: Path
    ranked: tuple[tuple[str, float], ...]


def evaluate_on(folder: Path, dataset: str | Data | None, backbone: str | None, device: str | None, skip_broken: bool,
                picture: Path | None = None) -> dict[str, float]:  # fmt: skip
    """Scores in percent on the test split of a dataset, among its classes; default: on what the run was tested on.

    That is the target of a run on domains. `picture`: where to draw 40 of its images.
    """
    task = Folder(folder).prompt()[1]["config"]["task"]
    if task["name"] == "text":
        if picture is not None:
            raise ValueError(f"the run in {str(folder)!r} is about texts, of which no picture can be drawn")
        about = task | {"skip_broken": skip_broken}
        if dataset is not None:  # which is shown as it says itself
            about |= {"dataset": dataset, "prompt": None, "plain": None}
        test = build_task(about).test
        return evaluate(restored(folder, backbone, device)[0], test).numbers
    of_domains = task["name"] == DOMAIN
    if dataset is None and of_domains:
        [*_, stage] = build_task(task | {"skip_broken": skip_broken}).stages()
        test = stage.tests["target"]
    else:
        test = given(task["dataset"] if dataset is None else dataset, None, skip_broken).test
    method, _ = restored(folder, backbone, device)
    scores = evaluate(method, test)
    if picture is not None:
        shown = test.of([i * len(test) // 40 for i in range(40)] if len(test) > 40 else range(len(test)))
        probabilities, labels = torch.cat(list(answers(method, shown))).softmax(1), torch.tensor(shown.labels)
        captions, right = _said(probabilities, shown.names), (probabilities.argmax(1) == labels).tolist()
        if of_domains and (guess := pseudo_labels(method, unlabelled(shown), method.fixed(shown.names))) is not None:
            known = guess[1] if bool(guess[1].any()) else ~guess[1]  # UPL learns from images, of which none is here
            told = zip(captions, _said(guess[0], shown.names), known.tolist(), strict=True)
            what = "pseudo" if method.adapts else "zero-shot"
            captions = [f"{mine}\n{what} {theirs if sure else f'({theirs})'}" for mine, theirs, sure in told]
        captions = [caption if good else f"{caption}\nis {shown.names[label]}"
                    for caption, good, label in zip(captions, right, shown.labels, strict=True)]  # fmt: skip
        pictures = [item.pixels(Look((96, 96)), None).clamp(0, 1).permute(1, 2, 0).numpy() for item in shown.items]
        predictions(pictures, captions, right, picture)
    return scores.numbers


def _said(probabilities: Tensor, names: Names) -> list[str]:
    """The surest class of each row (N, C), with its probability."""
    return [f"{names[int(k)]} {float(p):.2f}" for p, k in zip(*probabilities.max(1), strict=True)]


def predict_files(
    folder: Path, images: Sequence[Path], backbone: str | None, device: str | None, skip_broken: bool
) -> list[Prediction]:
    """Probabilities for image files; ValueError that names the first that can't be read, unless they may be skipped."""
    if Folder(folder).prompt()[1]["config"]["task"]["name"] == "text":
        raise ValueError(
            f"the run in {str(folder)!r} is about texts: give them by --text, or a file of them (.txt, .jsonl), not "
            f"{str(images[0])!r}"
        )
    good = []
    for path in images:
        try:
            open_picture(path)
            good.append(path)
        except ValueError:
            if not skip_broken:
                raise
    if not good:
        return []
    method, names = restored(folder, backbone, device)
    split = Split(tuple(file_item(p) for p in good), (0,) * len(good), names)
    probabilities: Tensor = torch.cat(list(answers(method, split))).softmax(1)
    found = []
    for path, row in zip(good, probabilities, strict=True):
        order = row.argsort(descending=True).tolist()
        found.append(Prediction(path, tuple((str(names[i]), float(row[i])) for i in order)))
    return found


def draw(found: Sequence[Prediction], path: Path) -> Path:
    """The images in a grid, with what was predicted under each."""
    pictures = [open_picture(p.path) for p in found]
    return predictions(pictures, [f"{p.ranked[0][0]} {p.ranked[0][1]:.2f}" for p in found], [None] * len(found), path)
