"""All pictures of a folder of runs."""

from collections.abc import Sequence
from pathlib import Path

from vlprompt.results.comparability import DOMAIN, STREAM
from vlprompt.results.plots import continual, domains
from vlprompt.results.plots.shots import by_shots, over_shots, saved
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.summary import rows


def draw(results: Sequence[Result], runs: Path, picture: Path | None = None) -> list[Path]:
    """Every picture there are results for, into the folder `runs`; `picture` names the first.

    shots.png; of streams stages.png, matrix.png, prompts.png; of domains pseudo.png, pairs.png. ValueError where there
    is nothing to draw.
    """
    found, made = rows(results), list[Path]()
    of_streams, of_domains = ([r for r in found if r.task == task] for task in (STREAM, DOMAIN))
    if any(map(by_shots, found)) or not of_streams + of_domains:
        made.append(over_shots(found, picture or runs / "shots.png"))
    for several in (continual.figures(of_streams), domains.figures(of_domains)):
        for name, figure in several:
            made.append(saved(figure, (None if made else picture) or runs / name))
    if not made:
        continual.over_stages(of_streams)  # says what is missing
    return made
