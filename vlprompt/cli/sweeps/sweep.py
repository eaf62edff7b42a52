"""The command `vlprompt sweep`. Heavy libraries are imported when it runs."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import (
    DEFAULT_SAVE_EVERY,
    DeviceOption,
    FeatureCacheOption,
    FreshOption,
    KeepPredictionsOption,
    MemoryLimitOption,
    RootOption,
    SaveEveryOption,
    SideBySideOption,
    ThreadsOption,
    TrackOption,
    VerifyDataOption,
    expand_home,
    parse_trackers,
    require_prediction_writer,
    set_data_root,
    set_data_verification,
    set_feature_cache,
    set_memory_limit,
)
from vlprompt.runtime.paths import DEFAULT_RUNS_FOLDER, require_folder

if TYPE_CHECKING:
    from vlprompt.config.run_config import RunConfig
    from vlprompt.experiments.schedulers.scheduler import Scheduler
    from vlprompt.experiments.sweeps.expansion import Expansion, ImpossibleRun
    from vlprompt.experiments.sweeps.options import SweepOptions
    from vlprompt.experiments.sweeps.supervisor import SweepReport
    from vlprompt.experiments.sweeps.sweep_file import SweepSpace

console, error_console = make_console(), make_console(stderr=True)
MANY_RUNS = 10_000  # asked to confirm
MAX_SHOWN_REASONS = 10  # impossible runs, in an error


def sweep(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="A file of a sweep, and key=value,value: method, dataset, task, backbone, shots, seed, source, "
            "target, or a setting such as train.lr.",
            metavar="[FILE.yaml] [KEY=VALUE[,VALUE]]...",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Where run folders go; default: `out` of the file, else runs.", callback=expand_home
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would run, what it costs and lacks, and stop.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="With --plan: measure a step of each method here.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes, or workers of a cluster; default: `jobs` of the file, else 1.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="Where workers run: slurm, ray or local; default: `on` of the file, else local.")
    ] = None,
    on_options: Annotated[
        list[str] | None,
        typer.Option("--on-option", help="Of slurm or ray: partition=gpu; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    skip_impossible: Annotated[
        bool, typer.Option("--skip-impossible", help="Run the others where some combinations can't be run.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help=f"Run more than {MANY_RUNS:,} runs without a question.")
    ] = False,
    patience: Annotated[
        float,
        typer.Option(min=1, help="Seconds without a sign after which a worker of another machine counts as dead."),
    ] = 120.0,
    device: DeviceOption = None,
    root: RootOption = None,
    save_every: SaveEveryOption = DEFAULT_SAVE_EVERY,
    threads: ThreadsOption = None,
    feature_cache: FeatureCacheOption = None,
    memory_limit: MemoryLimitOption = None,
    fresh: FreshOption = False,
    verify_data: VerifyDataOption = False,
    track: TrackOption = None,
    side_by_side: SideBySideOption = False,
    keep_predictions: KeepPredictionsOption = False,
) -> None:
    """Run every combination of methods, datasets, shots, seeds and settings, by one process or many.

    What is finished is not done again, what was stopped goes on, a run whose process died is tried once more, and one
    that fails stops no other. The same command may be given until it is through, and in several shells at once.
    """
    from vlprompt.cli.sweeps.placement import choose_placement
    from vlprompt.experiments.sweeps.options import SweepOptions

    set_data_root(root)
    set_feature_cache(feature_cache)
    set_memory_limit(memory_limit)
    set_data_verification(verify_data)
    require_prediction_writer(keep_predictions)
    space = _read_space(arguments)
    placement = choose_placement(space, jobs, on, on_options or [])
    runs_folder = out or (Path(space.place.out).expanduser() if space.place.out else DEFAULT_RUNS_FOLDER)
    require_folder(runs_folder, "--out")
    trackers = parse_trackers(track)
    options = SweepOptions(
        runs_folder,
        device,
        threads,
        save_every,
        fresh=fresh,
        trackers=trackers,
        side_by_side=side_by_side,
        keep_predictions=keep_predictions,
    )
    scheduler = None if plan or placement.is_in_process else placement.build_scheduler(options)
    expansion = _expand(space, yes)
    impossible = {**expansion.impossible, **_find_impossible(expansion.configs, options)}
    configs = [config for config in expansion.configs if config.hash not in impossible]
    if plan:
        _show_plan(configs, impossible, options, placement.n_workers, calibrate)
        return
    if impossible and not (skip_impossible and configs):
        raise ValueError(_explain_impossible(impossible, len(configs)))
    with _interrupt_on_sigterm():
        report = _run(configs, options, patience, scheduler)
    _show_report(configs, report, runs_folder, keep_predictions)


def _read_space(arguments: list[str]) -> "SweepSpace":
    """Read what the arguments combine."""
    from vlprompt.experiments.sweeps.sweep_file import read_sweep_space

    has_file = bool(arguments) and "=" not in arguments[0]
    return read_sweep_space(Path(arguments[0]).expanduser() if has_file else None, arguments[has_file:])


def _expand(space: "SweepSpace", yes: bool) -> "Expansion":
    """Resolve the runs of a sweep."""
    from vlprompt.experiments.sweeps.expansion import expand

    if (n_runs := space.count()) > MANY_RUNS and not yes:
        question = f"{n_runs:,} combinations; each takes a folder and a file of the sweep. Go on?"
        if not console.is_terminal or not typer.confirm(question):
            raise ValueError(
                f"sweep: expected at most {MANY_RUNS:,} runs without a question, got {n_runs:,}. Give "
                "--yes to run them."
            )
    expansion = expand(space)
    for notice in expansion.notices:
        console.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if not expansion.configs and not expansion.impossible:
        raise ValueError("sweep: expected combinations, got none that `exclude` leaves. Exclude fewer.")
    return expansion


def _find_impossible(configs: "list[RunConfig]", options: "SweepOptions") -> "dict[str, ImpossibleRun]":
    from vlprompt.experiments.sweeps.expansion import find_impossible_runs
    from vlprompt.experiments.sweeps.options import LoadedBackbones

    return find_impossible_runs(configs, LoadedBackbones(options))


def _explain_impossible(impossible: "dict[str, ImpossibleRun]", n_possible: int) -> str:
    from vlprompt.experiments.sweeps.expansion import list_reasons

    reasons = list_reasons(impossible)
    n_impossible = sum(run.n_runs for run in impossible.values())
    more = f" (and {len(reasons) - MAX_SHOWN_REASONS} more)" if len(reasons) > MAX_SHOWN_REASONS else ""
    lines = "\n  ".join(reasons[:MAX_SHOWN_REASONS])
    return (
        f"sweep: expected runs that can be made, got {n_impossible} of {n_possible + n_impossible} that "
        f"can't{more}:\n  {lines}\nExclude them, or give --skip-impossible to run the others."
    )


def _show_plan(
    configs: "list[RunConfig]",
    impossible: "dict[str, ImpossibleRun]",
    options: "SweepOptions",
    n_workers: int,
    calibrate: bool,
) -> None:
    from vlprompt.cli.sweeps.plan_table import show_plan
    from vlprompt.experiments.sweeps.options import LoadedBackbones
    from vlprompt.experiments.sweeps.plan import plan_sweep
    from vlprompt.experiments.sweeps.stored_runs import iter_stored_runs

    stored = list(iter_stored_runs(configs, options))
    load = LoadedBackbones(options).load if calibrate else None
    show_plan(
        plan_sweep(configs, stored, options.runs_folder, load), impossible, n_workers, console, options.side_by_side
    )


def _run(
    configs: "list[RunConfig]",
    options: "SweepOptions",
    patience: float,
    scheduler: "Scheduler | None",
) -> "SweepReport":
    """Run a sweep by the workers of a scheduler, or in this process."""
    from vlprompt.cli.display.progress import ProgressDisplay
    from vlprompt.cli.display.sweep_table import SweepDisplay
    from vlprompt.experiments.schedulers.in_process import InProcess
    from vlprompt.experiments.sweeps.supervisor import run_sweep

    if scheduler is None:
        with ProgressDisplay(console) as display:
            return run_sweep(configs, options, InProcess(display), display, patience=patience)
    with SweepDisplay(console) as display:
        return run_sweep(configs, options, scheduler, display, patience=patience)


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Stop at SIGTERM as at Ctrl-C: workers save their states."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_report(configs: "list[RunConfig]", report: "SweepReport", runs_folder: Path, keep_predictions: bool) -> None:
    """Print the table of what is finished, and what failed.

    Raises:
        typer.Exit: with status 1 where runs failed.
    """
    from vlprompt.cli.display.terminal import describe_failures, report_missing_predictions, show_results
    from vlprompt.experiments.sweeps.run_names import get_run_folder
    from vlprompt.results.tables.summary import build_rows

    finished = [result for result in report.results if result is not None]
    show_results(build_rows(finished), console)
    console.print(f"{len(finished)} of {len(configs)} runs under {runs_folder}/", style="dim", highlight=False)
    if keep_predictions:
        report_missing_predictions(finished, console)
    if report.errors:
        error_console.print(describe_failures(len(report.errors)), style="bold red")
        for index, error in report.errors.items():
            name = get_run_folder(runs_folder, configs[index]).path.name
            error_console.print(f"{name}: {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1)
