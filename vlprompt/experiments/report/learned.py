"""What the prompts of some runs of a report have learned, as `vlprompt look` draws it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vlprompt.experiments.learned.prompt import load_prompt
from vlprompt.experiments.look.figures import PICTURES, Look
from vlprompt.experiments.look.subject import PictureUnavailableError
from vlprompt.experiments.report.choice import DetailedRun
from vlprompt.experiments.report.mistakes import describe_unknown
from vlprompt.results.plots.figure import Figure, make_figure_name
from vlprompt.results.report.content import Section

NAMES = tuple(name for name in PICTURES if name != "umap")  # which takes longest and shows the same as t-SNE
NOT_DRAWN = (
    "Nearest words of learned tokens, similarity of class texts, features in the plane, attention, use of a pool and "
    "pseudo-labels are not drawn, as they take seconds for each run: give `--look`, or see one run by `vlprompt look`."
)
CHOICE = (
    "Of each task and method the run that stands first among those with shown answers, if it has learned anything, as "
    "`vlprompt look` draws it. A method has only some of these pictures."
)


def build_learned_section(runs: Sequence[DetailedRun], n_left: int, is_drawn: bool) -> Section:
    """Build the section with the pictures of runs.

    Args:
        runs: whose prompts are loaded.
        n_left: how many runs more there are.
        is_drawn: False for a section that names the option instead; it is empty without runs.
    """
    name, title = "learned", "What was learned"
    if not runs or not is_drawn:
        return Section(name, title, (NOT_DRAWN,) if runs else ())
    figures, reasons = list[Figure](), list[tuple[str, str]]()
    for run in runs:
        try:
            figures += _iter_figures(run)
        except (OSError, ValueError, LookupError, TypeError, ImportError) as error:  # another machine, other weights
            reasons.append((run.label, str(error)))
    text = f"{CHOICE} {n_left} more are not shown." if n_left else CHOICE
    return Section(name, title, (text,), figures=figures, lines=describe_unknown(reasons, "pictures"))


def _iter_figures(run: DetailedRun) -> Iterator[Figure]:
    """Yield the pictures that the method of a run has."""
    folder = str(run.result.folder)
    look = Look(load_prompt(folder))
    for name in NAMES:
        try:
            figure = PICTURES[name](look)
        except PictureUnavailableError:
            continue
        own_name = make_figure_name("look", name, Path(folder).name)
        yield replace(figure, name=own_name, title=f"{figure.title}: {run.label}")
