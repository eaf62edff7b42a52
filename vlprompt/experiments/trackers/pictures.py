"""Pictures of one run for the stores that show some: few, small, and by the same names in every run."""

from collections.abc import Iterator

from vlprompt.results.plots.all_figures import ROW_TOPICS
from vlprompt.results.plots.confusion import build_confusion, read_run_answers
from vlprompt.results.plots.figure import Figure, render_picture
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.summary import build_rows

TOPICS = ("learning", "stages", "matrix", "pseudo")  # of `ROW_TOPICS`: what a run shows without others beside it
MAX_CONFUSIONS = 2  # of the tests with the most items: of a stream all that was seen, of base-to-new both halves
MAX_BYTES = 2**20  # of one picture


def render_run_pictures(result: Result) -> dict[str, bytes]:
    """Return "pictures/NAME" -> PNG: curves of the loss and the lessons, and confusion matrices of the last tests."""
    pictures = {f"pictures/{name}": render_picture(figure, "png") for name, figure in _iter_figures(result)}
    return {name: data for name, data in pictures.items() if len(data) <= MAX_BYTES}


def _iter_figures(result: Result) -> Iterator[tuple[str, Figure]]:
    rows = build_rows([result])
    for topic in TOPICS:
        for figure in ROW_TOPICS[topic](rows)[:1]:
            yield topic, figure
    answers = {test: one for test, one in read_run_answers(result).items() if len(one.labels)}
    for test in sorted(answers, key=lambda test: -len(answers[test].labels))[:MAX_CONFUSIONS]:
        yield f"confusion/{test}", build_confusion(answers[test], f"confusion-{test}", test)
