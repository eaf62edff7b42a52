"""The command `vlprompt plot`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import RunsArgument
from vlprompt.runtime.errors import suggest_nearest
from vlprompt.runtime.paths import DEFAULT_RUNS_FOLDER

if TYPE_CHECKING:
    from vlprompt.results.run_folder import Result

console = make_console()
WHAT_HELP = (
    "Write these figures instead, each in files of its own: shots, base_new, bars, radar, cost, learning, stages, "
    "matrix, prompts, pseudo, pairs, confusion, reliability, scores, roc; several with commas, or all."
)
FORMAT_HELP = "Formats of --what: png, pdf, svg, and of the numbers csv, md, tex; several with commas. Default: png."


def plot(
    runs_folder: RunsArgument = DEFAULT_RUNS_FOLDER,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="The first PNG: of shots, else of stages; default in RUNS.")
    ] = None,
    what: Annotated[str | None, typer.Option("--what", metavar="NAME,...", help=WHAT_HELP)] = None,
    formats: Annotated[str | None, typer.Option("--format", metavar="FORMAT,...", help=FORMAT_HELP)] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of --what; default RUNS/figures.")] = None,
) -> None:
    """Draw all finished runs: shots.png; of streams stages, matrix and prompts.png; of domains pseudo and pairs.png."""
    from vlprompt.cli.display.terminal import show_warnings
    from vlprompt.results.plots.all_plots import draw_all_plots
    from vlprompt.results.run_scan import scan_runs

    if what is None and (formats is not None or out is not None):
        option = "--format" if formats is not None else "--out"
        raise ValueError(f"{option}: expected --what with it, got none. Name figures, such as --what shots.")
    if what is not None and figure is not None:
        raise ValueError("--figure: expected no --what with it, got both. Name a folder by --out instead.")
    names = None if what is None else _split(what)
    suffixes = _split("png" if formats is None else formats)
    if names is not None:
        _require_known(names, suffixes)
    scan = scan_runs(runs_folder)
    if names is None:
        for path in draw_all_plots(scan.results, runs_folder, figure):
            console.print(f"wrote {path}")
    else:
        _save_figures(scan.results, names, suffixes, out or runs_folder / "figures")
    show_warnings(scan.describe_left_out(), console)


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _require_known(names: list[str], suffixes: list[str]) -> None:
    from vlprompt.results.plots.all_figures import TOPICS
    from vlprompt.results.plots.figure import PICTURE_FORMATS, TABLE_SUFFIXES

    choices = {"what": (names, (*TOPICS, "all")), "format": (suffixes, (*PICTURE_FORMATS, *TABLE_SUFFIXES))}
    for option, (values, known) in choices.items():
        if unknown := [value for value in values if value not in known]:
            nearest = suggest_nearest(unknown[0], known)
            raise ValueError(f"--{option}: expected one of {', '.join(known)}, got {unknown[0]!r}; {nearest}")


def _save_figures(results: "list[Result]", names: list[str], suffixes: list[str], folder: Path) -> None:
    from vlprompt.results.plots.all_figures import TOPICS, build_figures
    from vlprompt.results.plots.figure import save_figure_files

    figures = build_figures(results, TOPICS if "all" in names else names)
    if not figures:
        raise ValueError(
            f"--what: expected runs with data for {', '.join(names)}, got none. "
            "See which runs there are by `vlprompt table`."
        )
    for figure in figures:
        for path in save_figure_files(figure, folder, suffixes):
            console.print(f"wrote {path}")
