"""The command `vlprompt sweep`. Heavy libraries are imported when it runs."""

import os
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
    MemoryLimitOption,
    RootOption,
    RunsFolderOption,
    SaveEveryOption,
    SideBySideOption,
    ThreadsOption,
    TrackOption,
    VerifyDataOption,
    parse_trackers,
    set_data_root,
    set_data_verification,
    set_feature_cache,
    set_memory_limit,
)
from vlprompt.runtime.paths import DEFAULT_RUNS_FOLDER

if TYPE_CHECKING:
    from vlprompt.config.run_config import RunConfig
    from vlprompt.experiments.schedulers.scheduler import Scheduler
    from vlprompt.experiments.sweeps.expansion import Expansion
    from vlprompt.experiments.sweeps.options import SweepOptions
    from vlprompt.experiments.sweeps.supervisor import SweepReport

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
    runs_folder: RunsFolderOption = DEFAULT_RUNS_FOLDER,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would run, what it costs and lacks, and stop.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="With --plan: measure a step of each method here.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes, or workers of a cluster; default 1.")] = None,
    on: Annotated[str | None, typer.Option(help="Where workers run: slurm or ray; default this machine.")] = None,
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
) -> None:
    """Run every combination of methods, datasets, shots, seeds and settings, by one process or many.

    What is finished is not done again, what was stopped goes on, a run whose process died is tried once more, and one
    that fails stops no other. The same command may be given until it is through, and in several shells at once.
    """
    from vlprompt.experiments.sweeps.options import SweepOptions

    set_data_root(root)
    set_feature_cache(feature_cache)
    set_memory_limit(memory_limit)
    set_data_verification(verify_data)
    trackers = parse_trackers(track)
    options = SweepOptions(
        runs_folder, device, threads, save_every, fresh=fresh, trackers=trackers, side_by_side=side_by_side
    )
    expansion = _expand(arguments, yes)
    impossible = {**expansion.impossible, **_find_impossible(expansion.configs, options)}
    configs = [config for config in expansion.configs if config.hash not in impossible]
    if plan:
        _show_plan(configs, impossible, options, jobs or 1, calibrate)
        return
    if impossible and not (skip_impossible and configs):
        raise ValueError(_explain_impossible(impossible, len(expansion.configs) + len(expansion.impossible)))
    with _interrupt_on_sigterm():
        report = _run(configs, options, patience, jobs, on, on_options or [])
    _show_report(configs, report, runs_folder)


def _expand(arguments: list[str], yes: bool) -> "Expansion":
    """Resolve the runs that the arguments name."""
    from vlprompt.experiments.sweeps.expansion import expand
    from vlprompt.experiments.sweeps.sweep_file import read_sweep_space

    has_file = bool(arguments) and "=" not in arguments[0]
    space = read_sweep_space(Path(arguments[0]).expanduser() if has_file else None, arguments[has_file:])
    if (n_runs := space.count()) > MANY_RUNS and not yes:
        question = f"{n_runs:,} combinations; each takes a folder and a file of the sweep. Go on?"
        if not console.is_terminal or not typer.confirm(question):
            raise ValueError(
                f"sweep: expected at most {MANY_RUNS:,} runs without a question, got {n_runs:,}. Give "
                "--yes to run them."
            )
    expansion = expand(space)
    if expansion.n_repeated:
        console.print(f"{expansion.n_repeated} combinations name a run of another one; each is made once")
    if not expansion.configs and not expansion.impossible:
        raise ValueError("sweep: expected combinations, got none that `exclude` leaves. Exclude fewer.")
    return expansion


def _find_impossible(configs: "list[RunConfig]", options: "SweepOptions") -> dict[str, str]:
    from vlprompt.experiments.sweeps.expansion import find_impossible_runs
    from vlprompt.experiments.sweeps.options import LoadedBackbones

    return find_impossible_runs(configs, LoadedBackbones(options))


def _explain_impossible(impossible: dict[str, str], n_runs: int) -> str:
    reasons = list(dict.fromkeys(impossible.values()))
    more = f" (and {len(reasons) - MAX_SHOWN_REASONS} more)" if len(reasons) > MAX_SHOWN_REASONS else ""
    lines = "\n  ".join(reasons[:MAX_SHOWN_REASONS])
    return (
        f"sweep: expected runs that can be made, got {len(impossible)} of {n_runs} that can't{more}:\n  {lines}\n"
        "Exclude them, or give --skip-impossible to run the others."
    )


def _show_plan(
    configs: "list[RunConfig]", impossible: dict[str, str], options: "SweepOptions", n_workers: int, calibrate: bool
) -> None:
    from vlprompt.cli.sweeps.plan_table import show_plan
    from vlprompt.experiments.sweeps.options import LoadedBackbones
    from vlprompt.experiments.sweeps.plan import plan_sweep
    from vlprompt.experiments.sweeps.runs import read_finished_runs

    results = read_finished_runs(configs, options)
    load = LoadedBackbones(options).load if calibrate else None
    show_plan(plan_sweep(configs, results, options.runs_folder, load), impossible, n_workers, console)


def _run(
    configs: "list[RunConfig]",
    options: "SweepOptions",
    patience: float,
    jobs: int | None,
    on: str | None,
    on_options: list[str],
) -> "SweepReport":
    """Run a sweep where the options say."""
    from vlprompt.cli.display.progress import ProgressDisplay
    from vlprompt.cli.display.sweep_table import SweepDisplay
    from vlprompt.experiments.schedulers.in_process import InProcess
    from vlprompt.experiments.sweeps.supervisor import run_sweep

    if on is None and on_options:
        raise ValueError("--on-option: expected with --on slurm or --on ray, got neither. Name one, or leave it out.")
    if on is None and (jobs or 1) == 1:
        with ProgressDisplay(console) as display:
            return run_sweep(configs, options, InProcess(display), display, patience=patience)
    with SweepDisplay(console) as display:
        return run_sweep(configs, options, _build_scheduler(options, jobs, on, on_options), display, patience=patience)


def _build_scheduler(options: "SweepOptions", jobs: int | None, on: str | None, on_options: list[str]) -> "Scheduler":
    from vlprompt.config.sources import parse_text
    from vlprompt.experiments.schedulers.choice import build_cluster
    from vlprompt.experiments.schedulers.processes import Processes
    from vlprompt.experiments.sweeps.sweep_folder import SweepFolder

    log_folder = SweepFolder(options.runs_folder).path / "logs"
    if on is None:
        return Processes(jobs or 1, log_folder, _list_gpus(options.device))
    pairs = [word.partition("=") for word in on_options]
    if wrong := [word for word, pair in zip(on_options, pairs, strict=True) if not pair[1]]:
        raise ValueError(f"--on-option: expected KEY=VALUE, got {wrong[0]!r}. Write --on-option partition=gpu.")
    return build_cluster(on, jobs or 1, log_folder, {key: parse_text(text) for key, _, text in pairs})


def _list_gpus(device: str | None) -> tuple[str, ...]:
    """List the GPUs that workers share out; none where the option names one device, or the CPU."""
    import torch

    from vlprompt.experiments.schedulers.processes import name_devices

    if device not in (None, "cuda"):
        return ()
    return name_devices(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Stop at SIGTERM as at Ctrl-C: workers save their states."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_report(configs: "list[RunConfig]", report: "SweepReport", runs_folder: Path) -> None:
    """Print the table of what is finished, and what failed.

    Raises:
        typer.Exit: with status 1 where runs failed.
    """
    from vlprompt.cli.display.terminal import show_results
    from vlprompt.experiments.sweeps.run_names import get_run_folder
    from vlprompt.results.tables.summary import build_rows

    finished = [result for result in report.results if result is not None]
    show_results(build_rows(finished), console)
    console.print(f"{len(finished)} of {len(configs)} runs under {runs_folder}/", style="dim", highlight=False)
    if report.errors:
        error_console.print(f"{len(report.errors)} failed; the same command tries again:", style="bold red")
        for index, error in report.errors.items():
            name = get_run_folder(runs_folder, configs[index]).path.name
            error_console.print(f"{name}: {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1)
