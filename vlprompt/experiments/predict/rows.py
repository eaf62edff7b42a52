"""Answers as rows: the prediction of each input, its most probable classes, and the error of a broken one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.experiments.learned.decision import UNKNOWN
from vlprompt.experiments.learned.prompt import Answers, list_labels
from vlprompt.experiments.predict.prompts import Ensemble
from vlprompt.experiments.predict.read_ahead import OpenedInput

# path, perhaps text; then prediction, probability, top ..., or labels, top ..., or response, or error
Row: TypeAlias = dict[str, Any]
DEFAULT_TOP_K = 3


@dataclass(frozen=True)
class RowLayout:
    """What stands in a row.

    Args:
        top_k: how many classes; None for all.
        has_each: whether the prediction of each prompt stands beside that of all.
    """

    top_k: int | None = DEFAULT_TOP_K
    has_each: bool = False

    def count_ranks(self, n_classes: int) -> int:
        """Return how many of the classes stand in a row."""
        return n_classes if self.top_k is None else min(self.top_k, n_classes)


def predict_batch(ensemble: Ensemble, batch: Sequence[OpenedInput], layout: RowLayout) -> list[Row]:
    """Return the row of each input of a batch, in order."""
    good = [opened for opened in batch if opened.error is None]
    items = [opened.items for opened in good]
    if not good:
        answers = []
    elif ensemble.writes_responses:
        answers = [{"response": text} for text in ensemble.generate(items)]
    elif ensemble.has_several_labels:
        answers = build_label_rows(ensemble, ensemble.answer(items), layout)
    else:
        answers = build_class_rows(ensemble, ensemble.answer(items), layout)
    rows = iter(answers)
    return [
        _build_head(opened) | ({"error": opened.error} if opened.error is not None else next(rows)) for opened in batch
    ]


def _build_head(opened: OpenedInput) -> Row:
    head: Row = {"path": opened.source.path}
    text = getattr(opened.items[0], "fields", None) if opened.items else None
    return head if text is None else head | {"text": _simplify_fields(text)}


def _simplify_fields(fields: Mapping[str, str]) -> str | dict[str, str]:
    return next(iter(fields.values())) if len(fields) == 1 else dict(fields)


def build_class_rows(ensemble: Ensemble, answers: Sequence[Answers], layout: RowLayout) -> list[Row]:
    """Return rows of classes: the mean of the prompts' probabilities, `unknown` where more than half reject.

    Args:
        ensemble: the prompts.
        answers: of each prompt.
        layout: what stands in a row.
    """
    probabilities = torch.stack([one.probabilities.double() for one in answers]).mean(0)
    rejections = torch.stack([one.is_unknown for one in answers]).double().mean(0) > 0.5
    has_threshold = ensemble.has_threshold
    has_score = list(has_threshold.values()) == [True]
    rows = _rank_classes(
        ensemble.names,
        probabilities,
        rejections,
        answers[0].scores if has_score else None,
        layout.count_ranks(len(ensemble.names)),
    )
    if layout.has_each:
        for (name, is_scored), one in zip(has_threshold.items(), answers, strict=True):
            scores = one.scores if is_scored else None
            own = _rank_classes(ensemble.names, one.probabilities, one.is_unknown, scores, 1)
            for row, own_row in zip(rows, own, strict=True):
                del own_row["top"]
                row.setdefault("each", {})[name] = own_row
    return rows


def build_label_rows(ensemble: Ensemble, answers: Sequence[Answers], layout: RowLayout) -> list[Row]:
    """Return rows of labels, by falling probability: those that more than half of the prompts give.

    Args:
        ensemble: the prompts.
        answers: of each prompt; the probabilities in a row are their mean.
        layout: what stands in a row.
    """
    names = [str(name) for name in ensemble.names]
    probabilities = torch.stack([one.probabilities for one in answers]).mean(0)
    is_given = torch.stack([one.is_given for one in answers]).double().mean(0) > 0.5
    unknown = torch.zeros(len(probabilities), dtype=torch.bool)
    ranked = _rank_classes(ensemble.names, probabilities, unknown, None, layout.count_ranks(len(names)))
    labels = list_labels(probabilities, is_given, names)
    rows: list[Row] = [{"labels": own, "top": row["top"]} for own, row in zip(labels, ranked, strict=True)]
    for name, one in zip(ensemble.prompts, answers, strict=True) if layout.has_each else ():
        for row, own in zip(rows, list_labels(one.probabilities, one.is_given, names), strict=True):
            row.setdefault("each", {})[name] = {"labels": own}
    return rows


def _rank_classes(names: Names, probabilities: Tensor, rejections: Tensor, scores: Tensor | None, k: int) -> list[Row]:
    """Return a row for each of B items: classes by falling probability, the first of the list at a tie."""
    ranked, order = probabilities.sort(dim=1, descending=True, stable=True)
    values, indices = ranked[:, :k].tolist(), order[:, :k].tolist()
    is_rejected, texts = rejections.tolist(), [str(name) for name in names]
    score_values = [None] * len(values) if scores is None else scores.tolist()
    rows = list[Row]()
    for row_values, row_indices, rejected, score in zip(values, indices, is_rejected, score_values, strict=True):
        top = [
            {"class": texts[i], "probability": _round(value)} for i, value in zip(row_indices, row_values, strict=True)
        ]
        row: Row = {
            "prediction": UNKNOWN if rejected else top[0]["class"],
            "probability": top[0]["probability"],
        }
        rows.append(row | ({} if score is None else {"score": _round(score)}) | {"top": top})
    return rows


def _round(value: float) -> float:
    """Round to the digits that single precision has."""
    return float(f"{value:.7g}")
