"""Tables of predictions by name: what each class came to, confusions, reliability."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from vlprompt.metrics import answers, calibration, multi_label
from vlprompt.metrics.catalogue import PERCENT, SCIKIT_LEARN, MetricTable, Row
from vlprompt.metrics.predictions import Predictions

NO_ANSWER = "(no answer)"


def build_class_rows(p: Predictions) -> list[Row]:
    """Return items, precision, recall and F1 of each class, of several labels also its average precision."""
    if p.targets is None:
        items = torch.bincount(p.one_label, minlength=len(p.names))
        columns = {"items": items, **_name_columns(answers.precision_recall_f1(p.predicted, p.one_label, len(p.names)))}
    else:
        chosen = multi_label.select_labels(p.label_scores, p.label_threshold)
        by_class = [multi_label.label_scores(chosen[:, [c]], p.targets[:, [c]]) for c in range(len(p.names))]
        columns = {"items": (p.targets == 1).sum(0)}
        columns |= _name_columns([torch.tensor([one[key] for one in by_class]) for key in ("OP", "OR", "OF1")])
        columns["average_precision"] = multi_label.average_precisions(p.label_scores, p.targets)
    values = {key: column.tolist() for key, column in columns.items()}
    return [{"class": name, **{key: values[key][i] for key in values}} for i, name in enumerate(p.names)]


def _name_columns(columns: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(("precision", "recall", "f1"), columns, strict=True))


def build_confusion_rows(p: Predictions) -> list[Row]:
    """Return how often each class was answered as each, where it was: class, answer, items."""
    counts, names = answers.confusion_matrix(p.predicted, p.one_label, len(p.names)), [*p.names, NO_ANSWER]
    return [{"class": names[i], "answer": names[j], "items": int(counts[i, j])} for i, j in counts.nonzero().tolist()]


def build_reliability_rows(p: Predictions, n_bins: int) -> list[Row]:
    """Return items, mean probability and share right of each bin that has items."""
    columns = (column.tolist() for column in calibration.reliability(p.confidence, p.top_correct, n_bins))
    return [
        {"above": 100 * i / n_bins, "up to": 100 * (i + 1) / n_bins, "items": n, "probability": mean, "right": right}
        for i, (n, mean, right) in enumerate(zip(*columns, strict=True))
        if n
    ]


TABLES: Mapping[str, MetricTable] = {
    "per_class": MetricTable(
        "items, precision, recall and F1 of each class; of several labels those above the threshold, and the average "
        "precision",
        PERCENT,
        SCIKIT_LEARN,
        build_class_rows,
    ),
    "confusion": MetricTable(
        "how many items of each class were answered as each, where any were",
        "0 to N",
        SCIKIT_LEARN,
        build_confusion_rows,
    ),
    **{
        f"reliability{n}": MetricTable(
            f"items, mean probability and share right in {n} equally wide bins (lower, upper] of the top probability",
            PERCENT,
            "Guo et al., arXiv:1706.04599",
            partial(build_reliability_rows, n_bins=n),
        )
        for n in (10, 15, 20)
    },
}
