"""Write pictures into files, and their numbers beside them."""

from collections.abc import Sequence
from pathlib import Path

from vlprompt.results.plots.figure import Figure
from vlprompt.results.plots.shots import load_pyplot
from vlprompt.results.tables.formats import render_csv

PICTURE_FORMATS = ("png", "pdf", "svg")


def require_picture_formats(formats: Sequence[str]) -> None:
    """Raise ValueError for a format that there is not."""
    for name in formats:
        if name not in PICTURE_FORMATS:
            raise ValueError(f"--format: expected {', '.join(PICTURE_FORMATS)}, got {name!r}. Write one of them.")


def write_picture(figure: Figure, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write a picture in each format, and its table as CSV; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    plt = load_pyplot()
    drawn, axes = plt.subplots(figsize=figure.size, layout="constrained")
    figure.draw(axes)
    paths = [folder / f"{figure.name}.{name}" for name in formats]
    for path in paths:
        drawn.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(drawn)
    if figure.table is not None:
        path = folder / f"{figure.name}.csv"
        header = figure.table.header
        path.write_text(render_csv([dict(zip(header, row, strict=True)) for row in figure.table.rows], header), "utf-8")
        paths.append(path)
    return paths
