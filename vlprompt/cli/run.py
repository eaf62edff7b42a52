"""The command `vlprompt run`. Heavy libraries are imported when it runs, so that --help is instant."""

from typing import TYPE_CHECKING, Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import (
    DEFAULT_SAVE_EVERY,
    BackboneOption,
    ConfigFileOption,
    DeviceOption,
    FeatureCacheOption,
    FreshOption,
    ImageCacheOption,
    KeepPredictionsOption,
    MemoryLimitOption,
    ProcessesOption,
    RootOption,
    RunsFolderOption,
    SaveEveryOption,
    SeedOption,
    SideBySideOption,
    SkipBrokenOption,
    ThreadsOption,
    TrackOption,
    VerifyDataOption,
    WorkersOption,
    join_processes,
    parse_integers,
    parse_trackers,
    refuse_empty_names,
    require_prediction_writer,
    set_data_root,
    set_data_verification,
    set_feature_cache,
    set_image_decoding,
    set_memory_limit,
)
from vlprompt.runtime import distributed
from vlprompt.runtime.errors import describe_error, is_debugging
from vlprompt.runtime.paths import DEFAULT_RUNS_FOLDER

if TYPE_CHECKING:
    from rich.console import Console

    from vlprompt.config.run_config import RunConfig
    from vlprompt.config.sources import Override
    from vlprompt.experiments.sweeps.options import SweepOptions

out, error_console = make_console(), make_console(stderr=True)


def _are_method_names(text: str) -> bool:
    from vlprompt.methods import find_classes

    return all(part in find_classes() or ":" in part for part in text.split(","))


def _require_one_dataset(names: list[str]) -> None:
    if len(names) > 1:
        raise ValueError(
            f"dataset: expected one dataset, got {', '.join(names)}. Give one dataset, and settings as key=value."
        )


def run(
    method: Annotated[str | None, typer.Argument(help="A method, or several with commas: coop,cocoop.")] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="A dataset (a card's name, a folder or file of images or texts), then key=value settings.",
            metavar="[DATASET] [KEY=VALUE]...",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The dataset, if not given as an argument.", callback=refuse_empty_names)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="few_shot (default), base_to_new, transfer, vtab, continual, domain, online, open_set, multi_label, "
            "text."
        ),
    ] = None,
    targets: Annotated[
        str | None, typer.Option(help="Of a transfer: datasets with commas.", callback=refuse_empty_names)
    ] = None,
    unknown: Annotated[
        str | None,
        typer.Option(
            help="Of open_set: datasets of unknown classes, with commas; default: held-out classes.",
            callback=refuse_empty_names,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="Of domains: one, several at once with commas, rest or none; default each in turn.",
            callback=refuse_empty_names,
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Of domains: one, or several in turn with commas.", callback=refuse_empty_names)
    ] = None,
    backbone: BackboneOption = None,
    shots: Annotated[str | None, typer.Option(help="Images or texts per class; several with commas.")] = None,
    seed: SeedOption = None,
    config_file: ConfigFileOption = None,
    runs_folder: RunsFolderOption = DEFAULT_RUNS_FOLDER,
    device: DeviceOption = None,
    root: RootOption = None,
    skip_broken: SkipBrokenOption = False,
    save_every: SaveEveryOption = DEFAULT_SAVE_EVERY,
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    image_cache: ImageCacheOption = None,
    max_lessons: Annotated[
        int | None, typer.Option(min=1, help="Pause a stream after so many lessons; without it the command goes on.")
    ] = None,
    augmentations: Annotated[
        int | None, typer.Option(min=1, help="How many augmented views of an image exist; default: one per epoch.")
    ] = None,
    feature_cache: FeatureCacheOption = None,
    memory_limit: MemoryLimitOption = None,
    processes: ProcessesOption = None,
    fresh: FreshOption = False,
    verify_data: VerifyDataOption = False,
    track: TrackOption = None,
    side_by_side: SideBySideOption = False,
    keep_predictions: KeepPredictionsOption = False,
) -> None:
    """Train and test: every combination of methods, shots and seeds (and pairs of domains), one folder each.

    What is finished is not done again, and what was stopped goes on where it was, so the same command can be given
    until it is through; a run whose data, files or weights have changed meanwhile is refused. Settings: recipe of the
    method < -c file < options < key=value, for example method.n_ctx=4 train.epochs=20.
    """
    from vlprompt.experiments.sweeps.combinations import resolve_sweep
    from vlprompt.experiments.sweeps.options import SweepOptions

    set_data_root(root)
    set_feature_cache(feature_cache)
    set_image_decoding(workers, image_cache)
    set_memory_limit(memory_limit)
    set_data_verification(verify_data)
    require_prediction_writer(keep_predictions)
    arguments = [w for w in (arguments or []) if w]
    if method and "=" in method:
        method, arguments = None, [method, *arguments]
    if config_file is not None and method and not _are_method_names(method):
        method, arguments = None, [method, *arguments]  # the file names the method, the argument the dataset
    arguments = [w.removeprefix("dataset=") for w in arguments]
    plain = [w for w in arguments if "=" not in w]
    _require_one_dataset(plain)
    settings: list[Override] = [{"task": {"targets": [name.strip() for name in targets.split(",")]}}] if targets else []
    settings += [{"task": {"unknown": [name.strip() for name in unknown.split(",")]}}] if unknown else []
    settings += [f"train.augmentations={augmentations}"] if augmentations else []
    settings += [w for w in arguments if "=" in w] + (["task.skip_broken=true"] if skip_broken else [])
    with join_processes(device, processes, out) as (process_device, process_console):
        configs = resolve_sweep(
            [m for m in method.split(",") if m] if method else [None],
            parse_integers(shots, "shots"),
            parse_integers(seed, "seed"),
            source=source,
            target=target,
            task=task,
            dataset=dataset or (plain[0] if plain else None),
            backbone=backbone,
            config_file=config_file,
            overrides=settings,
        )
        where = runs_folder, process_device, threads, save_every, max_lessons, fresh, parse_trackers(track)
        options = SweepOptions(*where, side_by_side, keep_predictions)
        unique = list({config.hash: config for config in configs}.values())
        if repeated := len(configs) - len(unique):
            process_console.print(f"{repeated} of {len(configs)} runs were named twice; each is made and counted once")
        run_and_show(unique, options, process_console)


def run_and_show(configs: "list[RunConfig]", options: "SweepOptions", console: "Console") -> None:
    """Make the runs that are not finished, then print the table of all.

    Raises:
        typer.Exit: with status 1 where some of several runs failed; the others are made.
    """
    from vlprompt.cli.display.progress import ProgressDisplay
    from vlprompt.cli.display.terminal import report_missing_predictions, show_results
    from vlprompt.experiments.sweeps.runs import run_configs
    from vlprompt.results.tables.summary import build_rows

    failures: dict[int, Exception] = {}
    # the processes of a group end together, as one of them alone can't go on to the next run
    goes_on = len(configs) > 1 and distributed.get_world_size() == 1 and not is_debugging()
    with ProgressDisplay(console) as display:
        all_results = run_configs(configs, options, display, failures=failures if goes_on else None)
    results = [result for result in all_results if result is not None]
    if not results and len({describe_error(error) for error in failures.values()}) == 1:
        raise next(iter(failures.values()))  # a wrong argument
    finished = [result for result in results if "paused" not in result.protocol]
    if n_paused := len(results) - len(finished):
        runs = f"{n_paused} runs" if n_paused > 1 else "the run"
        console.print(f"{runs} paused; the same command without --max-lessons goes on", style="yellow")
    if finished or not n_paused:
        show_results(build_rows(finished), console)
    console.print(f"{len(finished)} run{'s' * (len(finished) != 1)} under {options.runs_folder}/", style="dim")
    if options.keep_predictions:
        report_missing_predictions(finished, console)
    if failures:
        _show_failures([(configs[index], error) for index, error in failures.items()])
        raise typer.Exit(1)


def _show_failures(failures: "list[tuple[RunConfig, Exception]]") -> None:
    from vlprompt.cli.display.terminal import describe_failures
    from vlprompt.experiments.sweeps.run_names import format_run_name

    error_console.print(describe_failures(len(failures)), style="bold red", highlight=False)
    for config, error in failures:
        text = f"{format_run_name(config)}: {describe_error(error)}"
        error_console.print(text, markup=False, highlight=False, soft_wrap=True)
