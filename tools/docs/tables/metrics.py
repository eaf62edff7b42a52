"""The page of metrics: every number in a result.json and every metric by name, with its definition."""

from collections.abc import Mapping

from docs.markdown_text import code, escape, fenced, page_title, table
from vlprompt.engine.label_scores import LABEL_METRICS
from vlprompt.engine.unknown_scores import SCORES
from vlprompt.experiments.prediction_scores import UNKNOWN_TABLE
from vlprompt.metrics import (
    ANSWER_METRICS,
    BASE_TO_NEW_METRICS,
    CALIBRATION_METRICS,
    CONTINUAL_METRICS,
    DOMAIN_METRICS,
    REJECTION_METRICS,
    RESPONSE_METRICS,
    TRANSFER_METRICS,
    UNKNOWN_METRICS,
)
from vlprompt.metrics.catalogue import METRICS
from vlprompt.metrics.tables import TABLES
from vlprompt.metrics.unknown_sets import SCORE_METRICS
from vlprompt.results.result_schema import COST_PARTS, RESULT_PARTS
from vlprompt.tasks.domain import UNKNOWN_TARGET_METRICS
from vlprompt.tasks.online import ONLINE_METRICS
from vlprompt.tasks.open_set import OPEN_SET_METRICS

SECTIONS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "Classes": (
        "Of every test with classes, and the summary of `few_shot`, `vtab` and of texts with classes or tags.",
        ANSWER_METRICS,
    ),
    "Responses": ("Of the task `text` where a text is answered by a text.", RESPONSE_METRICS),
    "Base to new": (
        "The summary of `base_to_new`; with `task.base_only=true` it has `base` alone.",
        BASE_TO_NEW_METRICS,
    ),
    "Transfer": ("The summary of `transfer`.", TRANSFER_METRICS),
    "Streams": (
        "The summary of `continual`. The accuracy matrix has a row for each lesson learned and a column for each task; "
        "a stream with one test for all lessons has accuracy, overall and incremental of that test.",
        CONTINUAL_METRICS,
    ),
    "Domains": ("The summary of `domain`.", DOMAIN_METRICS),
    "Domains with unknown classes": ("Beside these where `task.unknown_classes` is set.", UNKNOWN_TARGET_METRICS),
    "Online": ("The summary of `online`.", ONLINE_METRICS),
    "Open set": ("The summary of `open_set`, for each score that the method has.", OPEN_SET_METRICS),
    "Several labels": (
        "The summary of `multi_label`, in percent. Of validation images without a known label that is present, the "
        "threshold is 0.",
        LABEL_METRICS,
    ),
    "Unknown classes": (
        "Of `vlprompt eval --unknown`, for each score; a score is high for what is known.",
        UNKNOWN_METRICS,
    ),
    "Rejection": ("Of `vlprompt eval` where a threshold was chosen by `--reject`.", REJECTION_METRICS),
    "Calibration": (
        "Of `vlprompt eval --calibrate`, before and after temperature scaling.",
        CALIBRATION_METRICS,
    ),
    "Cost": ("The part `cost` of a result.", COST_PARTS),
    "Parts of a result.json": ("", RESULT_PARTS),
}

BY_NAME = {  # group of METRICS -> title and text
    "one label": ("Answers", "Of items with one label each."),
    "probabilities of one label": ("Probabilities", "Likewise, of the probabilities of all classes."),
    "several labels": (
        "Several labels",
        "A label is predicted above the threshold that the run chose on validation images, without any above "
        "probability .5. The `mAP` are of items with one label too, whose other classes are negative.",
    ),
    "known and other classes": (
        "Known and other classes",
        "Of a test with items of classes that training had and of others, such as `joint` of `base_to_new`. The score "
        "of an item is the highest probability, among all classes, of those that training had.",
    ),
}


def _build_by_name() -> list[str]:
    """Return the section of what `vlprompt eval --metric` takes."""
    lines = ["## By name", "", "What `vlprompt eval --from-predictions FILE --metric NAME[,NAME...]` computes.", ""]
    columns = ["name", "definition", "range", "source"]
    groups = {BY_NAME[group]: metrics for group, metrics in METRICS.items()}
    for (title, text), metrics in [*groups.items(), (("Tables", "Several numbers each."), TABLES)]:
        rows = [[code(k), escape(m.definition), escape(m.limits), escape(m.source)] for k, m in metrics.items()]
        lines += [f"### {title}", "", text, "", *table(columns, rows)]
    metrics, scores = (", ".join(map(code, names)) for names in (SCORE_METRICS, SCORES))
    return [
        *lines,
        *("### Items of unknown classes", ""),
        "Of the file of a run of `open_set`, or of `vlprompt eval --unknown`: METRIC_SCORE as in the result, such as "
        f"{code('auroc_gl-mcm')}, is the mean over the sets of unknown items. METRIC is one of {metrics}, and SCORE "
        f"one of {scores}; METRIC alone is that of every score in the file. The table {code(UNKNOWN_TABLE)} has all of "
        "them, of each set.",
        "",
    ]


def build() -> str:
    """Return the page as Markdown."""
    lines = page_title(
        "Metrics",
        "Every number of a `result.json`, and every metric by name. Percentages unless said otherwise. A mean over "
        "seeds is shown as mean±standard deviation, where deviations are divided by n, as in the field.",
    )
    for title, (text, definitions) in SECTIONS.items():
        rows = [[code(key), escape(definition)] for key, definition in definitions.items()]
        lines += [f"## {title}", "", *([text, ""] if text else []), *table(["key", "definition"], rows)]
    lines += _build_by_name()
    lines += ["Tables of results:", "", *fenced("bash", "vlprompt table runs/ --json results.json")]
    return "\n".join(lines)
