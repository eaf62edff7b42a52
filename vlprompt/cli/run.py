"""The command `vlprompt run`. Heavy libraries are imported when it runs, so that --help is instant."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vlprompt.cli.options import (
    DEFAULT_RUNS_FOLDER,
    DEFAULT_SAVE_EVERY,
    BackboneOption,
    ConfigFileOption,
    DeviceOption,
    FeatureCacheOption,
    ImageCacheOption,
    MemoryLimitOption,
    ProcessesOption,
    RootOption,
    RunsFolderOption,
    SaveEveryOption,
    SeedOption,
    SkipBrokenOption,
    ThreadsOption,
    WorkersOption,
    join_processes,
    parse_integers,
    set_data_root,
    set_feature_cache,
    set_image_decoding,
    set_memory_limit,
)

if TYPE_CHECKING:
    from vlprompt.config.run_config import RunConfig
    from vlprompt.experiments.sweep import SweepOptions

out = Console()


def _are_method_names(text: str) -> bool:
    from vlprompt.methods import find_classes

    return all(part in find_classes() or ":" in part for part in text.split(","))


def run(
    method: Annotated[str | None, typer.Argument(help="A method, or several with commas: coop,cocoop.")] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="A dataset (a card's name, a folder or file of images or texts), then key=value settings.",
            metavar="[DATASET] [KEY=VALUE]...",
        ),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="The dataset, if not given as an argument.")] = None,
    task: Annotated[
        str | None, typer.Option(help="few_shot (default), base_to_new, transfer, vtab, continual, domain, text.")
    ] = None,
    targets: Annotated[str | None, typer.Option(help="Of a transfer: datasets with commas.")] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Of domains: one, several at once with commas, rest or none; default each in turn."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Of domains: one, or several in turn with commas.")] = None,
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
) -> None:
    """Train and test: every combination of methods, shots and seeds (and pairs of domains), one folder each.

    What is finished is not done again, and what was stopped goes on where it was, so the same command can be given
    until it is through. Settings: recipe of the method < -c file < options < key=value, for example method.n_ctx=4
    train.epochs=20.
    """
    from vlprompt.experiments.sweep import SweepOptions, resolve_sweep

    set_data_root(root)
    set_feature_cache(feature_cache)
    set_image_decoding(workers, image_cache)
    set_memory_limit(memory_limit)
    arguments = [w for w in (arguments or []) if w]
    if method and "=" in method:
        method, arguments = None, [method, *arguments]
    if config_file is not None and method and not _are_method_names(method):
        method, arguments = None, [method, *arguments]  # the file names the method, the argument the dataset
    arguments = [w.removeprefix("dataset=") for w in arguments]
    plain = [w for w in arguments if "=" not in w]
    if len(plain) > 1:
        raise ValueError(
            f"dataset: expected one dataset, got {', '.join(plain)}. Give one dataset, and settings as key=value."
        )
    settings = [f"task.targets=[{targets}]"] if targets else []
    settings += [f"train.augmentations={augmentations}"] if augmentations else []
    settings += [w for w in arguments if "=" in w] + (["task.skip_broken=true"] if skip_broken else [])
    methods = [m for m in method.split(",") if m] if method else [None]
    with join_processes(device, processes, out) as (process_device, process_console):
        configs = resolve_sweep(
            methods,
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
        options = SweepOptions(runs_folder, process_device, threads, save_every, max_lessons)
        run_and_show(configs, options, process_console)


def run_and_show(configs: "list[RunConfig]", options: "SweepOptions", console: Console) -> None:
    """Make the runs that are not finished, then print the table of all."""
    from vlprompt.cli.display.progress import ProgressDisplay
    from vlprompt.cli.display.terminal import show_results
    from vlprompt.experiments.sweep import run_configs
    from vlprompt.results.tables.summary import build_rows

    with ProgressDisplay(console) as display:
        results = [result for result in run_configs(configs, options, display) if result is not None]
    finished = [result for result in results if "paused" not in result.protocol]
    if n_paused := len(results) - len(finished):
        runs = f"{n_paused} runs" if n_paused > 1 else "the run"
        console.print(f"{runs} paused; the same command without --max-lessons goes on", style="yellow")
    if finished or not n_paused:
        show_results(build_rows(finished), console)
    console.print(f"{len(finished)} run{'s' * (len(finished) != 1)} under {options.runs_folder}/", style="dim")
