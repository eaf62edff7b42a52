"""The page of metrics: every number in a result.json, with its definition."""

from collections.abc import Mapping

from docs.markdown_text import code, escape, fenced, page_title, table
from vlprompt.engine.label_scores import LABEL_METRICS
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
from vlprompt.results.result_schema import COST_PARTS, RESULT_PARTS
from vlprompt.tasks.online import ONLINE_METRICS

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
    "Online": ("The summary of `online`.", ONLINE_METRICS),
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


def build() -> str:
    """Return the page as Markdown."""
    lines = page_title(
        "Metrics",
        "Every number of a `result.json`. Percentages unless said otherwise. A mean over seeds is shown as mean±"
        "standard deviation, where deviations are divided by n, as in the field.",
    )
    for title, (text, definitions) in SECTIONS.items():
        rows = [[code(key), escape(definition)] for key, definition in definitions.items()]
        lines += [f"## {title}", "", *([text, ""] if text else []), *table(["key", "definition"], rows)]
    lines += ["Tables of results:", "", *fenced("bash", "vlprompt table runs/ --json results.json")]
    return "\n".join(lines)
