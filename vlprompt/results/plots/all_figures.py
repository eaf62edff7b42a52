"""All figures of results, in a fixed order."""

from collections.abc import Sequence

from vlprompt.results.plots.confusion import build_answer_figures
from vlprompt.results.plots.figure import Figure
from vlprompt.results.run_folder import Result


def build_figures(results: Sequence[Result]) -> list[Figure]:
    """Build every figure that there are data for: confusion matrix and reliability diagram of each run's tests."""
    return [figure for result in results for figure in build_answer_figures(result)]
