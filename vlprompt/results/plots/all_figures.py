"""All figures of results, in a fixed order."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from vlprompt.results.plots import accuracy, confusion, continual, costs, curves, domains, unknown
from vlprompt.results.plots.figure import Figure
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.summary import ResultRow, build_rows
from vlprompt.runtime.errors import suggest_nearest

RowTopic = Callable[[Sequence[ResultRow]], list[Figure]]
ROW_TOPICS: dict[str, RowTopic] = {  # topic -> its figures of rows, means over seeds
    "shots": accuracy.build_shots_figures,
    "base_new": accuracy.build_base_new_figures,
    "bars": accuracy.build_bar_figures,
    "radar": accuracy.build_radar_figures,
    "cost": costs.build_cost_figures,
    "learning": curves.build_learning_figures,
    "stages": continual.build_stage_figures,
    "matrix": continual.build_matrix_figures,
    "prompts": continual.build_prompt_figures,
    "pseudo": domains.build_pseudo_label_figures,
    "pairs": domains.build_pair_figures,
}
RUN_TOPICS: dict[str, Callable[[Result], list[Figure]]] = {  # topic -> its figures of a single run
    "confusion": confusion.build_confusion_figures,
    "reliability": confusion.build_reliability_figures,
    "scores": unknown.build_score_figures,
    "roc": unknown.build_roc_figures,
}
TOPICS = (*ROW_TOPICS, *RUN_TOPICS)


def build_figures(results: Sequence[Result], topics: Sequence[str] = TOPICS) -> list[Figure]:
    """Build every figure that there are data for, in the order of `TOPICS`; each has a name of its own.

    Args:
        results: finished runs.
        topics: which, of `TOPICS`; a topic without data gives none.

    Raises:
        ValueError: for a topic that there is not.
    """
    if unknown := [topic for topic in topics if topic not in TOPICS]:
        raise ValueError(f"figures: expected a topic, got {unknown[0]!r}; {suggest_nearest(unknown[0], TOPICS)}")
    rows, figures = build_rows(results), list[Figure]()
    for topic in (t for t in TOPICS if t in topics):
        if topic in ROW_TOPICS:
            figures += ROW_TOPICS[topic](rows)
        else:
            figures += [figure for result in results for figure in RUN_TOPICS[topic](result)]
    return _number_equal_names(figures)


def _number_equal_names(figures: Sequence[Figure]) -> list[Figure]:
    """Add a number to names that several figures have, as their files would overwrite each other."""
    counts, named = dict[str, int](), list[Figure]()
    for figure in figures:
        key = figure.name.lower()  # file systems that ignore case
        counts[key] = counts.get(key, 0) + 1
        named.append(figure if counts[key] == 1 else replace(figure, name=f"{figure.name}-{counts[key]}"))
    return named
