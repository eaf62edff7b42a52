"""Figures of runs, as `vlprompt.plots`: values that draw into files or given axes, are interactive, and have a table.

results = vlprompt.plots.scan_runs(Path("runs")).results
for figure in vlprompt.plots.build_figures(results, ["shots"]):
    vlprompt.plots.save_figure_files(figure, Path("figures"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlprompt.results.plots.all_figures import TOPICS as TOPICS
    from vlprompt.results.plots.all_figures import build_figures as build_figures
    from vlprompt.results.plots.costs import find_pareto_front as find_pareto_front
    from vlprompt.results.plots.figure import Figure as Figure
    from vlprompt.results.plots.figure import draw_figure as draw_figure
    from vlprompt.results.plots.figure import render_figure_table as render_figure_table
    from vlprompt.results.plots.figure import render_picture as render_picture
    from vlprompt.results.plots.figure import save_figure_files as save_figure_files
    from vlprompt.results.run_scan import scan_runs as scan_runs

_HOMES = {  # public name -> the module that defines it
    "scan_runs": "run_scan",
    "build_figures": "plots.all_figures",
    "TOPICS": "plots.all_figures",
    "Figure": "plots.figure",
    "draw_figure": "plots.figure",
    "render_picture": "plots.figure",
    "render_figure_table": "plots.figure",
    "save_figure_files": "plots.figure",
    "find_pareto_front": "plots.costs",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vlprompt.plots' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"vlprompt.results.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
