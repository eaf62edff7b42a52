"""Build the report of folders of runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vlprompt.experiments.paper_recipes import compare_with_published
from vlprompt.experiments.report.choice import (
    DetailedRun,
    choose_detailed_runs,
    choose_learned_runs,
    choose_most_shots,
    describe_choice,
)
from vlprompt.experiments.report.commands import build_command_table
from vlprompt.experiments.report.learned import build_learned_section
from vlprompt.experiments.report.mistakes import MistakeFinder, MistakesUnknownError, describe_unknown
from vlprompt.results.plots.all_figures import ROW_TOPICS, RUN_TOPICS, build_figures
from vlprompt.results.plots.confusion import MAX_CLASSES, read_run_answers, write_confusion_csv
from vlprompt.results.plots.figure import Figure, make_figure_name
from vlprompt.results.published.report import COMPARISON_UNITS, build_comparison_tables, describe_unmatched
from vlprompt.results.report.content import Gallery, Report, ReportTable, Section
from vlprompt.results.report.environments import build_environment_table
from vlprompt.results.report.result_tables import (
    build_result_tables,
    build_run_table,
    build_test_tables,
)
from vlprompt.results.run_folder import Result
from vlprompt.results.run_scan import RunScan, mark_changed_inputs, scan_runs
from vlprompt.results.tables.summary import ResultRow, build_rows

ANSWERS_TITLE, OTHER_TITLE = "Answers: confusion and calibration", "Further figures"
UNKNOWN_TITLE = "Unknown classes: scores and ROC"
MAX_FIGURES = 32  # of costs, and of learning curves, of which thirty pairs of domains have one each
MOST_SHOTS_TITLES = {"cost": "Cost against accuracy", "learning": "Learning curves"}  # topics with many figures
MOST_SHOTS_TEXT = "Of each dataset the runs with the most shots; `vlprompt plot` draws all."
PUBLISHED_TEXT = (
    "Difference: ours less the published number. Each letter under not comparable is a difference of the protocols, "
    "named below the table; only a row without letters was made as the published number was."
)
TITLES = {  # topic of figures -> title of their section
    "shots": "Accuracy over shots",
    "base_new": "Base against new classes",
    "bars": "Datasets",
    "radar": "Datasets",
    "stages": "Streams",
    "matrix": "Streams",
    "prompts": "Streams",
    "pseudo": "Domains",
    "pairs": "Domains",
    **MOST_SHOTS_TITLES,
    "confusion": ANSWERS_TITLE,
    "reliability": ANSWERS_TITLE,
    "scores": UNKNOWN_TITLE,
    "roc": UNKNOWN_TITLE,
}
RESULTS_TEXT = (
    "Each table is one task on one dataset. Letters under protocol name what differs from most rows of the table; "
    "such rows are not compared with the others. Green is the method with the highest mean, pale green one that the "
    "test does not show to be worse; without colour it is worse, or there are too few pairs for a test."
)


def build_report(folders: Sequence[Path], title: str = "Results", with_learned: bool = False) -> Report:
    """Build the report of all runs in folders.

    Args:
        folders: of runs.
        title: of the page.
        with_learned: draw what the prompts of some runs have learned, which takes seconds for each.

    Raises:
        ValueError: for a folder that does not exist, or without any finished run.
    """
    scan = scan_runs(*folders)
    if not scan.results:
        reasons = scan.describe_left_out()
        more = f" ({reasons[0]})" if reasons else ""
        raise ValueError(
            f"runs: expected finished runs, got none in {', '.join(map(str, folders))}{more}. "
            "Make some by `vlprompt run coop digits --shots 1,4 --seed 1,2,3`."
        )
    results = [mark_changed_inputs(result) for result in scan.results]
    rows = build_rows(results)
    detailed, n_left = choose_detailed_runs(rows)
    chosen = {
        tuple(topic for topic in ROW_TOPICS if topic not in MOST_SHOTS_TITLES): results,
        tuple(MOST_SHOTS_TITLES): choose_most_shots(rows),
        tuple(RUN_TOPICS): [run.result for run in detailed],
    }
    figures = [figure for topics, members in chosen.items() for figure in build_figures(members, topics)]
    sections = [
        Section("results", "Results", (RESULTS_TEXT,), build_result_tables(rows)),
        Section("tests", "Tests over datasets", tables=build_test_tables(rows)),
        *_build_figure_sections(figures, detailed, n_left),
        _build_mistakes(detailed, n_left),
        build_learned_section(*choose_learned_runs(detailed), is_drawn=with_learned),
        _build_published(results),
        *_build_run_sections(rows, results),
        _build_left_out(scan),
    ]
    return Report(title, describe_results(rows, results), sections, _build_matrices(detailed))


def describe_results(rows: Sequence[ResultRow], results: Sequence[Result]) -> str:
    """Return in one sentence what a report is about."""
    counts = {
        "run": len(results),
        "method": len({row.method for row in rows}),
        "dataset": len({row.dataset for row in rows}),
        "task": len({row.task for row in rows}),
        "backbone": len({row.backbone for row in rows}),
    }
    return ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items()) + "."


def _build_figure_sections(
    figures: Sequence[Figure], detailed: Sequence[DetailedRun], n_left: int
) -> Iterator[Section]:
    by_title: dict[str, list[Figure]] = {title: [] for title in [*TITLES.values(), OTHER_TITLE]}
    for figure in figures:
        by_title[TITLES.get(figure.name.partition("-")[0], OTHER_TITLE)].append(figure)
    for title, group in by_title.items():
        if group:
            texts = [describe_choice(detailed, n_left)] if title in (ANSWERS_TITLE, UNKNOWN_TITLE) else []
            shown = group
            if title in MOST_SHOTS_TITLES.values():
                shown, texts = group[:MAX_FIGURES], [MOST_SHOTS_TEXT]
                texts += [f"The first {MAX_FIGURES} of {len(group)} figures."] if len(group) > MAX_FIGURES else []
            yield Section(make_figure_name(*title.lower().split()), title, texts, figures=shown)


def _build_mistakes(detailed: Sequence[DetailedRun], n_left: int) -> Section:
    finder, galleries, reasons = MistakeFinder(), list[Gallery](), list[tuple[str, str]]()
    for run in detailed:
        try:
            galleries.append(finder.build_gallery(run.result, run.label))
        except MistakesUnknownError as error:
            reasons.append((run.label, str(error)))
    text = f"{describe_choice(detailed, n_left)} The most confused pairs of classes, the surest mistakes first."
    return Section("mistakes", "Mistakes", (text,), galleries=galleries, lines=describe_unknown(reasons))


def _build_published(results: Sequence[Result]) -> Section:
    comparisons, unmatched = compare_with_published(results)
    tables = [
        ReportTable(make_figure_name("published", str(i)), table, COMPARISON_UNITS)
        for i, table in enumerate(build_comparison_tables(comparisons), 1)
    ]
    lines = [line] if (line := describe_unmatched(unmatched)) else []
    texts = [PUBLISHED_TEXT] if tables else []
    return Section("published", "Against published numbers", texts, tables, lines=lines)


def _build_run_sections(rows: Sequence[ResultRow], results: Sequence[Result]) -> Iterator[Section]:
    environments, by_folder = build_environment_table(results)
    yield Section("repeat", "Repeat it", tables=[build_command_table(rows), environments])
    yield Section("runs", "Runs", tables=[build_run_table(rows, by_folder)])


def _build_left_out(scan: RunScan) -> Section:
    return Section("left-out", "Left out, or counted beside its own kind", lines=scan.describe_left_out())


def _build_matrices(detailed: Sequence[DetailedRun]) -> dict[str, tuple[bytes, str]]:
    """Return the whole confusion matrices of tests with more classes than a figure shows."""
    files = {}
    for run in detailed:
        for test, answers in read_run_answers(run.result).items():
            if len(answers.names) > MAX_CLASSES:
                name = make_figure_name("confusion", Path(run.result.folder or "").name, test)
                about = f"all {len(answers.names)} classes of {run.label}, {test}: items by class and answer"
                files[f"tables/{name}-all.csv"] = (write_confusion_csv(answers).encode(), about)
    return files
