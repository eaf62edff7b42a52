"""One picture for each kind of runs in a folder: its figures as panels."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlprompt.results.atomic_files import write_atomically
from vlprompt.results.comparability import CONTINUAL
from vlprompt.results.plots.accuracy import build_shots_figures
from vlprompt.results.plots.all_figures import ROW_TOPICS
from vlprompt.results.plots.figure import STYLE, Figure, render_canvas
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.summary import build_rows

TOPICS = {  # name of a picture -> what builds its panels
    "shots": partial(build_shots_figures, n_shots=1),
    **{name: ROW_TOPICS[name] for name in ("stages", "matrix", "prompts", "pseudo", "pairs")},
}
MAX_WIDTH = 16.5  # inches


def draw_all_plots(results: Sequence[Result], folder: Path, first_path: Path | None = None) -> list[Path]:
    """Draw every picture that there are results for.

    Args:
        results: finished runs.
        folder: where to write shots.png; of streams stages.png, matrix.png and prompts.png; of domains pseudo.png and
            pairs.png.
        first_path: the path of the first picture, instead of its name in the folder.

    Raises:
        ValueError: if there is nothing to draw.
    """
    rows, paths = build_rows(results), list[Path]()
    for name, build in TOPICS.items():
        if figures := build(rows):
            path = (None if paths else first_path) or folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, render_panels(figures))
            paths.append(path)
    if not paths:
        is_stream = bool(rows) and all(row.task == CONTINUAL for row in rows)
        expected, command = (
            ("streams of at least two lessons", "nearest_mean digits --task continual --seed 1,2,3")
            if is_stream
            else ("few-shot runs", "coop digits --shots 1,2,4,8,16 --seed 1,2,3")
        )
        raise ValueError(f"plot: expected {expected}, got none. Make some by `vlprompt run {command}`.")
    return paths


def render_panels(figures: Sequence[Figure]) -> bytes:
    """Return figures of one kind side by side as the bytes of a PNG."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    width, height = (max(figure.size[i] for figure in figures) for i in (0, 1))
    n_columns = min(len(figures), max(1, int(MAX_WIDTH // width)))
    n_rows = -(-len(figures) // n_columns)
    with matplotlib.rc_context(STYLE):
        canvas: Any = Canvas(figsize=(width * n_columns, height * n_rows), layout="constrained")
        panels = canvas.subplots(n_rows, n_columns, squeeze=False).flat
        for panel, figure in zip(panels, figures, strict=False):
            figure.draw(panel)
        for panel in [*canvas.axes][len(figures) :][: n_rows * n_columns - len(figures)]:
            panel.axis("off")
        return render_canvas(canvas, "png")
