"""The commands `vlprompt table`, `vlprompt plot` and `vlprompt export`. Heavy libraries are imported when they run."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from vlprompt.cli.options import Device

out = Console()
Where = Annotated[
    str | None, typer.Option(help="Where the backbone is now, if not where it was; the weights must be the same.")
]
Runs = Annotated[Path, typer.Argument(help="A folder of runs.", metavar="RUNS")]


def table(
    runs: Runs = Path("runs"),
    markdown: Annotated[Optional[Path], typer.Option(help="Also write it as Markdown.")] = None,  # noqa: UP045
    csv: Annotated[Optional[Path], typer.Option(help="Also write every number as CSV.")] = None,  # noqa: UP045
    json: Annotated[Optional[Path], typer.Option(help="Also write every number as JSON.")] = None,  # noqa: UP045
    against: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="published: set beside the published numbers; the files then hold the comparison."),
    ] = None,
    groups: Annotated[str | None, typer.Option(help="A set of datasets (vtab): group means, in files too.")] = None,
) -> None:
    """Mean and spread over seeds of all finished runs in a folder, with trained parameters, seconds and peak memory."""
    from vlprompt.experiments.paper_recipes import paired
    from vlprompt.results.published import report as other
    from vlprompt.results.run_folder import read_all, write
    from vlprompt.results.tables import terminal
    from vlprompt.results.tables.formats import render
    from vlprompt.results.tables.summary import rows

    if against is not None:
        other.check(against)
    results, unfinished = read_all(runs)
    found, scored = rows(results), terminal.scored(results, groups)
    if groups is None:
        terminal.show_table(found, out)
    terminal.show_scores(scored, out)
    if against is not None:
        other.show(*paired(results), out)
    if unfinished:
        out.print(f"not finished, give the same command again: {', '.join(p.name for p in unfinished)}", style="yellow")
    for path, form in ((markdown, "markdown"), (csv, "csv"), (json, "json")):
        if path is not None:
            told = render(found, form) if against is None else other.render(*paired(results), form)
            write(path, (told if groups is None else terminal.render_scores(scored, form)).encode())
            out.print(f"wrote {path}")


def plot(
    runs: Runs = Path("runs"),
    picture: Annotated[
        Path | None, typer.Option("--picture", help="The first PNG: of shots, else of stages; default in RUNS.")
    ] = None,
) -> None:
    """Draw all finished runs: shots.png; of streams stages, matrix and prompts.png; of domains pseudo and pairs.png."""
    from vlprompt.results.plots.all_plots import draw
    from vlprompt.results.run_folder import read_all

    for path in draw(read_all(runs)[0], runs, picture):
        out.print(f"wrote {path}")


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")],
    folder: Annotated[Path, typer.Argument(help="Where to write; a new or empty folder.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="The whole model with what was learned in its weights, in float32.")
    ] = False,
    backbone: Where = None,
    device: Device = None,
) -> None:
    """Write what was learned on a language model as an adapter that PEFT loads, or as a whole model."""
    from vlprompt.experiments.export import export as written

    for line in written(run, folder, backbone, device, merge):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
