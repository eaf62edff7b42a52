"""All pictures of a folder of runs."""

from collections.abc import Sequence
from pathlib import Path

from vlprompt.results import domain_plot, stream_plot
from vlprompt.results.folder import Result
from vlprompt.results.plot import by_shots, over_shots, saved
from vlprompt.results.protocols import DOMAIN, STREAM
from vlprompt.results.table import rows


def draw(results: Sequence[Result], runs: Path, picture: Path | None = None) -> list[Path]:
    """Every picture there are results for, into the folder `runs`; `picture` names the first.

    shots.png; of streams stages.png, matrix.png, prompts.png; of domains pseudo.png, pairs.png. ValueError where there
    is nothing to draw.
    """
    found, made = rows(results), list[Path]()
    streams, domains = ([r for r in found if r.task == task] for task in (STREAM, DOMAIN))
    if any(map(by_shots, found)) or not streams + domains:
        made.append(over_shots(found, picture or runs / "shots.png"))
    for several in (stream_plot.figures(streams), domain_plot.figures(domains)):
        for name, figure in several:
            made.append(saved(figure, (None if made else picture) or runs / name))
    if not made:
        stream_plot.over_stages(streams)  # says what is missing
    return made
