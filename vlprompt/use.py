"""Using what a run has learned: predictions on image files, tests on other datasets."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlprompt.backbones import opened
from vlprompt.backbones.shelving import shelved, usual
from vlprompt.config import build_method, build_task
from vlprompt.data.card import Data, given
from vlprompt.data.hidden import unlabelled
from vlprompt.data.images import file_item, open_picture
from vlprompt.data.looks import look
from vlprompt.evaluate import answers, evaluate
from vlprompt.method import Method
from vlprompt.results.folder import Folder
from vlprompt.results.plot import predictions
from vlprompt.results.protocols import DOMAIN
from vlprompt.stage import Lesson, Look, Name, Names, Split, named
from vlprompt.train.criteria import pseudo_labels
from vlprompt.vision import look_of, seen, tower_of


@dataclass(frozen=True)
class Prediction:
    """Probabilities of the classes, best first."""

    path: Path
    ranked: tuple[tuple[str, float], ...]


def restored(folder: Path, backbone: str | None = None, device: str | None = None) -> tuple[Method, Names]:
    """The method of a finished run, with what it has learned, and the classes it was trained on.

    ValueError when the run is not finished, when the backbone's weights are not those it was trained with, or when the
    saved state does not fit the method.
    """
    state, told = Folder(folder).prompt()
    config = told["config"]
    frozen = shelved(opened(backbone or config["backbone"], device), usual())  # the result has told its notes
    if "look" in config:
        frozen = seen(frozen, look(config["look"], look_of(frozen)))
    key, where = tower_of(frozen).key, tower_of(frozen).device
    if key.partition("#")[2] != told["backbone_key"].partition("#")[2]:
        raise ValueError(
            f"the prompt in {str(folder)!r} was learned on {told['backbone_key']}, "
            f"but {backbone or config['backbone']} holds other weights ({key}); "
            "name the right ones by --backbone"
        )
    order = {key: told[key] for key in ("total", "announced") if key in told}
    every = told["lessons"] if "lessons" in told else [told["names"]]  # runs from before there were streams
    classes = [tuple(Name(*name) for name in names) for names in every]
    domains = told.get("domains", [()] * len(classes))
    lessons = [Lesson(Split((), (), names), index=i, domains=tuple(of), **order)
               for i, (names, of) in enumerate(zip(classes, domains, strict=True))]  # fmt: skip
    names = tuple({n.id: n for lesson in lessons for n in map(named, lesson.train.names)}.values())
    method = build_method(config["method"], frozen)
    try:
        method.restore(lessons, {k: v.to(where) for k, v in state.items()})
    except RuntimeError as error:
        cause = " ".join(str(error).split())
        raise ValueError(
            f"the learned state in {str(folder)!r} does not fit the method {config['method']['name']}: {cause}"
        ) from error
    return method.eval(), names


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


def as_lines(found: Sequence[Prediction], top: int) -> str:
    return "".join(f"{p.path}: {', '.join(f'{name} {value:.3f}' for name, value in p.ranked[:top])}\n" for p in found)


def as_json(found: Sequence[Prediction]) -> str:
    return (
        json.dumps(
            [{"image": str(p.path), "classes": [{"name": n, "probability": v} for n, v in p.ranked]} for p in found],
            indent=1,
        )
        + "\n"
    )


def as_csv(found: Sequence[Prediction]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "rank", "class", "probability"])
    for p in found:
        writer.writerows([p.path, i + 1, name, f"{value:.6f}"] for i, (name, value) in enumerate(p.ranked))
    return text.getvalue()


def draw(found: Sequence[Prediction], path: Path) -> Path:
    """The images in a grid, with what was predicted under each."""
    pictures = [open_picture(p.path) for p in found]
    return predictions(pictures, [f"{p.ranked[0][0]} {p.ranked[0][1]:.2f}" for p in found], [None] * len(found), path)
