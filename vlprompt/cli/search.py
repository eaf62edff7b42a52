"""The command `vlprompt search`. Heavy libraries are imported when it runs."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import (
    DEFAULT_SAVE_EVERY,
    BackboneOption,
    ConfigFileOption,
    DeviceOption,
    FeatureCacheOption,
    FreshOption,
    RootOption,
    RunsFolderOption,
    SaveEveryOption,
    SeedOption,
    SkipBrokenOption,
    ThreadsOption,
    TrackOption,
    VerifyDataOption,
    parse_trackers,
    set_data_root,
    set_data_verification,
    set_feature_cache,
)
from vlprompt.runtime.paths import DEFAULT_RUNS_FOLDER

if TYPE_CHECKING:
    from vlprompt.experiments.searches.study import Study
    from vlprompt.experiments.sweeps.options import LoadedBackbones, SweepOptions
    from vlprompt.results.run_folder import Result
    from vlprompt.results.search_folder import SearchFolder


console = make_console()


def search(
    method: Annotated[str, typer.Argument(help="A method, or several with commas: linear,vpt.")],
    datasets: Annotated[
        str,
        typer.Argument(
            help="Datasets (a card's name, a folder or file) or sets of them (vtab, fgvc), with commas.",
            metavar="DATASET|SET[,...]",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings, and lists to search: 'search.train.lr=[0.1,0.01]'.", metavar="[KEY=VALUE]..."),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="vtab; continual: a stream, searched on its first task.search_lessons=3 lessons; domain: "
            "generalisation to each target, by task.criterion (training-domain, leave-one-domain-out, test-domain)."
        ),
    ] = "vtab",
    backbone: BackboneOption = None,
    seed: SeedOption = None,
    config_file: ConfigFileOption = None,
    runs_folder: RunsFolderOption = DEFAULT_RUNS_FOLDER,
    device: DeviceOption = None,
    root: RootOption = None,
    skip_broken: SkipBrokenOption = False,
    save_every: SaveEveryOption = DEFAULT_SAVE_EVERY,
    threads: ThreadsOption = None,
    feature_cache: FeatureCacheOption = None,
    fresh: FreshOption = False,
    verify_data: VerifyDataOption = False,
    sampler: Annotated[
        str, typer.Option(help="grid: all combinations of lists; optuna: proposed values of lists and ranges, pruned.")
    ] = "grid",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Of optuna: how many in all, with those of other shells; default 50.")
    ] = None,
    track: TrackOption = None,
) -> None:
    """Search settings on validation images, then train with the best on all images, seed by seed, and test.

    The grid is the `search` section of configs/vtab/<method>.yaml, of the -c file and of key=value. What is done is not
    done again, and what was stopped goes on where it was. With --sampler optuna the same command in several shells
    shares the trials.
    """
    from vlprompt.cli.display.terminal import show_benchmark_scores, show_results
    from vlprompt.cli.options import parse_integers
    from vlprompt.experiments.sweeps.options import SweepOptions
    from vlprompt.results.tables.benchmarks import score_benchmarks
    from vlprompt.results.tables.summary import build_rows

    set_data_root(root)
    set_feature_cache(feature_cache)
    set_data_verification(verify_data)
    _require_trials(trials, sampler)
    given = [w for w in overrides or [] if w]
    if strange := [w for w in given if "=" not in w]:
        raise ValueError(
            f"settings: expected key=value, got {strange[0]!r}. Separate datasets by commas, without spaces, and write "
            "settings as key=value."
        )
    given += ["task.skip_broken=true"] if skip_broken else []
    seeds = list(dict.fromkeys(n for n in parse_integers(seed, "seed") if n is not None))
    options = SweepOptions(runs_folder, device, threads, save_every, fresh=fresh, trackers=parse_trackers(track))
    results: list[Result] = []
    failed: dict[str, Exception] = {}
    clips: dict[str, Any] = {}
    for name in dict.fromkeys(method.split(",")):
        for dataset in dict.fromkeys(_expand_datasets(datasets)):
            how = {"backbone": backbone, "config_file": config_file, "overrides": given}
            how |= {"sampler": sampler, "task": task}
            try:
                results += _search_dataset(name, dataset, seeds, how, clips, options, trials)
            except (ValueError, OSError, ArithmeticError) as error:
                failed[f"{name} on {dataset}"] = error
                console.print(f"{name} on {dataset}: failed", style="red", soft_wrap=True)
    scores = score_benchmarks(results)
    if scores:
        show_benchmark_scores(scores, console)
    elif results:
        show_results(build_rows(results), console)
    if failed:
        (first, error), *others = failed.items()
        more = f" Failed too: {', '.join(name for name, _ in others)}." if others else ""
        raise ValueError(f"{first}: {error}{more}")


def _require_trials(trials: int | None, sampler: str) -> None:
    if trials is not None and sampler == "grid":
        raise ValueError(f"--trials: expected --sampler optuna with it, got {trials} for a grid. Add --sampler optuna.")


def _expand_datasets(text: str) -> Sequence[str]:
    """Return the datasets of a comma-separated text, with sets expanded."""
    from vlprompt.data.dataset_groups import list_benchmark_datasets

    return [one for word in text.split(",") if word for one in (list_benchmark_datasets(word) or [word])]


def _search_dataset(
    method: str,
    dataset: str,
    seeds: list[int],
    settings: dict[str, Any],
    backbones: dict[str, Any],
    options: "SweepOptions",
    n_trials: int | None,
) -> "list[Result]":
    from vlprompt.experiments.searches.study import build_studies

    studies = build_studies(method, dataset, seeds=seeds, **settings)
    return [result for study in studies for result in _search(method, study, backbones, options, n_trials)]


def _search(
    method: str, study: "Study", backbones: dict[str, Any], options: "SweepOptions", n_trials: int | None
) -> "list[Result]":
    """Search one study, and train and test with what it chose."""
    from vlprompt.cli.display.progress import ProgressDisplay
    from vlprompt.experiments.sweeps.options import LoadedBackbones
    from vlprompt.experiments.sweeps.runs import run_configs

    folder = study.get_folder(options.runs_folder, options.fresh)
    if note := study.task.protocol["note"]:  # opens the data, so that their errors come before a backbone is loaded
        console.print(f"{study.dataset}: {note}", style="yellow", soft_wrap=True)
    loaded = LoadedBackbones(options, backbones)
    with ExitStack() as stack:
        if study.sampler == "grid":
            chosen = _search_grid(study, folder, loaded)
        else:
            chosen = _search_trials(study, folder, loaded, n_trials, stack)
        console.print(_format_choice(method, study, chosen), highlight=False, soft_wrap=True)
        configs = study.build_final_configs(chosen)
        with ProgressDisplay(console) as display:
            results = run_configs(configs, options, display, backbones=backbones)
    return [result for result in results if result is not None]


def _search_grid(study: "Study", folder: "SearchFolder", backbones: "LoadedBackbones") -> dict[str, Any]:
    from vlprompt.cli.display.progress import ProgressDisplay
    from vlprompt.experiments.searches.grid import run_search

    if (chosen := folder.read_chosen()) is not None:
        return chosen
    backbone = backbones.load(study.settings[0].config)
    with ProgressDisplay(console) as display:
        return run_search(study, folder, backbone, backbones.options.save_every, display)


def _search_trials(
    study: "Study", folder: "SearchFolder", backbones: "LoadedBackbones", n_trials: int | None, stack: ExitStack
) -> dict[str, Any]:
    """Run the trials, and hold the final runs for this process until `stack` closes."""
    from vlprompt.cli.display.progress import ProgressDisplay
    from vlprompt.experiments.searches.trial_store import TrialStore
    from vlprompt.experiments.searches.trials import DEFAULT_TRIALS, run_trials

    store, options, n = TrialStore(study, folder), backbones.options, n_trials or DEFAULT_TRIALS
    backbone = backbones.load(study.settings[0].config)
    with ProgressDisplay(console) as display:
        chosen = run_trials(study, store, backbone, n, options.save_every, display, options.trackers)
    stack.enter_context(store.claim_final_runs())
    return chosen


def _format_choice(method: str, study: "Study", chosen: dict[str, Any]) -> str:
    target = chosen["config"]["task"].get("target")
    dataset = study.dataset if target is None else f"{study.dataset} -> {target}"
    if chosen["accuracy"] is None:
        return f"{method} on {dataset}: one setting, nothing to choose"
    train, scale = chosen["config"]["train"], study.search_space.get("lr_base_batch_size")
    values = ", ".join(
        f"{k.partition('.')[2]} {f'{v:.4g}' if isinstance(v, float) else v}" for k, v in chosen["values"].items()
    )
    if scale and "train.lr" in chosen["values"]:
        values += f" (the lr is times {train['batch_size']}/{scale}: {train['lr']:.4g})"
    kind = "trials" if study.sampler != "grid" else "settings"
    out_of = f", {chosen['non_finite']} of them not finite" if chosen["non_finite"] else ""
    pruned = f", {chosen['pruned']} pruned" if chosen.get("pruned") else ""
    tied = f", {chosen['tied']} more as good" if chosen["tied"] else ""
    return (
        f"{method} on {dataset}: {chosen['n_settings']} {kind}{pruned}{out_of} ({chosen['seconds']:.1f} s); "
        f"validation {chosen['accuracy']:.1f}{tied} with {values}"
    )
