"""All plots of a folder of runs."""

from collections.abc import Sequence
from pathlib import Path

from vlprompt.results.comparability import CONTINUAL, DOMAIN
from vlprompt.results.plots import continual, domains
from vlprompt.results.plots.shots import has_shots_curve, plot_shots, save_figure
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.summary import build_rows


def draw_all_plots(results: Sequence[Result], folder: Path, first_path: Path | None = None) -> list[Path]:
    """Draw every plot that there are results for.

    Args:
        results: finished runs.
        folder: where to write shots.png; of streams stages.png, matrix.png and prompts.png; of domains pseudo.png and
            pairs.png.
        first_path: the path of the first plot, instead of its name in the folder.

    Raises:
        ValueError: if there is nothing to draw.
    """
    rows, paths = build_rows(results), list[Path]()
    continual_rows, domain_rows = ([r for r in rows if r.task == task] for task in (CONTINUAL, DOMAIN))
    if any(map(has_shots_curve, rows)) or not continual_rows + domain_rows:
        paths.append(plot_shots(rows, first_path or folder / "shots.png"))
    for figures in (continual.iter_continual_figures(continual_rows), domains.iter_domain_figures(domain_rows)):
        for name, figure in figures:
            paths.append(save_figure(figure, (None if paths else first_path) or folder / name))
    if not paths:
        continual.require_curves(continual_rows)
    return paths
