"""Answers as rows: the prediction of each input, its most probable classes, and the error of a broken one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.experiments.learned.decision import UNKNOWN
from vlprompt.experiments.learned.prompt import Answers
from vlprompt.experiments.predict.prompts import Ensemble
from vlprompt.experiments.predict.read_ahead import OpenedInput

Row: TypeAlias = dict[str, Any]  # path, perhaps text; then prediction, probability, top ..., or response, or error
DEFAULT_TOP_K = 3


@dataclass(frozen=True)
class RowLayout:
    """What stands in a row.

    Args:
        top_k: how many classes.
        has_each: whether the prediction of each prompt stands beside that of all.
    """

    top_k: int = DEFAULT_TOP_K
    has_each: bool = False


def predict_batch(ensemble: Ensemble, batch: Sequence[OpenedInput], layout: RowLayout) -> list[Row]:
    """Return the row of each input of a batch, in order."""
    good = [opened for opened in batch if opened.error is None]
    items = [opened.items for opened in good]
    if not good:
        answers = []
    elif ensemble.writes_responses:
        answers = [{"response": text} for text in ensemble.generate(items)]
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
        ensemble.names, probabilities, rejections, answers[0].scores if has_score else None, layout.top_k
    )
    if layout.has_each:
        for (name, is_scored), one in zip(has_threshold.items(), answers, strict=True):
            scores = one.scores if is_scored else None
            own = _rank_classes(ensemble.names, one.probabilities, one.is_unknown, scores, 1)
            for row, own_row in zip(rows, own, strict=True):
                del own_row["top"]
                row.setdefault("each", {})[name] = own_row
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
