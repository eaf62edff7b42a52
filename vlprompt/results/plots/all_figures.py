"""All figures of results, in a fixed order."""

from collections.abc import Sequence

from vlprompt.results.plots.figure import Figure
from vlprompt.results.run_folder import Result


def build_figures(results: Sequence[Result]) -> list[Figure]:
    """Build every figure over several runs that there are data for."""
    return []
