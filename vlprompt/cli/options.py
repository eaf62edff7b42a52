"""Options that several commands have, each declared once, and what they set in the process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vlprompt.cli.display.console import make_console
from vlprompt.runtime import distributed
from vlprompt.runtime.paths import require_folder
from vlprompt.runtime.settings import SETTINGS


def expand_home(path: Path | None) -> Path | None:
    """Expand ~ in a path, which shells leave as it is in --out=~/runs."""
    return None if path is None else path.expanduser()


def take_runs_folder(path: Path | None) -> Path | None:
    """Expand ~, and require a folder that is there or can be made, before anything long begins."""
    path = expand_home(path)
    if path is not None:
        require_folder(path, "--out")
    return path


def refuse_empty_names(option: typer.CallbackParam, value: str | list[str] | None) -> str | list[str] | None:
    """Require names, one or with commas: an unset variable of a shell gives an empty one, which would mean none."""
    names = [] if value is None else value.split(",") if isinstance(value, str) else value
    if any(not name.strip() for name in names):
        name = f"--{option.name}" if option.param_type_name == "option" else option.name
        wanted = "domain" if option.name in ("source", "target") else "dataset"
        raise ValueError(
            f"{name}: expected a {wanted}, got an empty name in {value!r}. Name one, or leave it out; where a variable "
            "of the shell is meant, set it."
        )
    return value


# what is run, and where its results go
BackboneOption = Annotated[
    str | None,
    typer.Option(
        help="glyph (default), open_clip:NAME/TAG, open_clip:NAME@FILE, hf_clip:OWNER/NAME, pixels; without "
        "texts glyph-vit, timm:NAME/TAG, timm:NAME@FILE; hf:FOLDER a language model. All: vlprompt list backbones."
    ),
]
SeedOption = Annotated[
    str | None,
    typer.Option(help="Random seed; several with commas. Default: 1, of a search search.seeds of the recipe if any."),
]
ConfigFileOption = Annotated[
    Path | None, typer.Option("-c", "--config", help="A YAML file of settings.", callback=expand_home)
]
RunsFolderOption = Annotated[Path, typer.Option("-o", "--out", help="Where run folders go.", callback=take_runs_folder)]
SaveEveryOption = Annotated[float, typer.Option(min=0, help="Seconds between two saved states.")]
DEFAULT_SAVE_EVERY = 5.0

# runs that are there
RunsArgument = Annotated[Path, typer.Argument(help="A folder of runs.", metavar="RUNS", callback=expand_home)]
_RUN = typer.Argument(
    help="The folder of a finished run, a model folder, or OWNER/NAME[@REVISION] on the Hugging Face hub.",
    metavar="RUN",
    callback=expand_home,
)
RunArgument = Annotated[Path, _RUN]
OptionalRunArgument = Annotated[Path | None, _RUN]
MovedBackboneOption = Annotated[
    str | None,
    typer.Option("--backbone", help="Where the backbone is now, if not where it was; the weights must be the same."),
]

# learned prompts that are shared
LicenseOption = Annotated[
    str | None, typer.Option("--license", help="The licence of the prompt, as the hub writes it: mit, cc-by-4.0 ...")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace the model that is there.")]

FreshOption = Annotated[
    bool,
    typer.Option("--fresh", help="Run in a new folder where there is a run on other data, files or weights."),
]
VerifyDataOption = Annotated[
    bool,
    typer.Option("--verify-data", help="Read all files again to compare contents; default: those with other times."),
]

# how the machine is used; no result depends on these
SkipBrokenOption = Annotated[bool, typer.Option("--skip-broken", help="Leave out image files that can't be decoded.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default a GPU where there is one.")]
RootOption = Annotated[
    Path | None, typer.Option("--root", help="Where datasets with a card lie; default: VLPROMPT_DATA, else ./data.")
]
LayoutOption = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help="What the sub-folders of a folder are: classes, groups, domains or splits; default: recognised.",
    ),
]
FeatureCacheOption = Annotated[
    str | None,
    typer.Option(
        help="Where frozen features are cached, shared by runs; none: nowhere. Default: VLPROMPT_FEATURE_CACHE, else "
        "the user's cache folder.",
        metavar="DIR|none",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="CPU threads: by default all, but one for the embedded CLIP, which more only slow."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(help="Threads that decode images: by default one for each CPU, 16 at most; 0 or 1: no extra thread."),
]
ImageCacheOption = Annotated[
    float | None,
    typer.Option(help="GB for decoded images: by default 1, or an eighth of a small memory; 0: no cache."),
]
MemoryLimitOption = Annotated[
    float | None,
    typer.Option(help="GB that the process (on a GPU: its tensors) may take in all; default: what is free."),
]
SideBySideOption = Annotated[
    bool,
    typer.Option(
        "--side-by-side",
        help="Train runs that differ by seed, train.lr or train.weight_decay in shared passes of a frozen tower, "
        "where that is faster; equal to rounding.",
    ),
]
TrackOption = Annotated[
    str | None,
    typer.Option(
        help="Copy runs to jsonl, tensorboard, wandb, mlflow or trackio; several with commas.", metavar="NAME[,NAME]"
    ),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option(min=1, help="How many processes there must be; torchrun --nproc-per-node N starts N of them."),
]
KeepPredictionsOption = Annotated[
    bool,
    typer.Option(
        "--keep-predictions",
        help="Write label, prediction and logits of each item of the last tests into predictions-TEST.parquet of the "
        "run's folder, for `vlprompt eval --from-predictions`.",
    ),
]

# how scores become an answer
ScoreOption = Annotated[
    str | None,
    typer.Option(
        "--score",
        help="Scores of how well an item is known: msp, maxlogit, energy, mcm, gl-mcm; several with commas.",
        metavar="NAME[,NAME]",
    ),
]
RejectOption = Annotated[
    str | None,
    typer.Option(
        help="Answer `unknown` below a threshold chosen on validation items: 0.95 accepts at least this share of them, "
        "fpr=0.05 at most this share of the items of --unknown.",
        metavar="SHARE|fpr=SHARE",
    ),
]
UnknownOption = Annotated[
    str | None,
    typer.Option(
        help="A dataset whose classes are all unknown; of the dataset that the run was trained on, its other classes.",
        metavar="DATASET",
        callback=refuse_empty_names,
    ),
]
CalibrateOption = Annotated[
    bool, typer.Option("--calibrate", help="Fit a temperature on validation items (Guo et al., 2017).")
]
ValidationOption = Annotated[
    str | None,
    typer.Option(
        help="A dataset whose validation split --reject and --calibrate take; default: that of the run.",
        metavar="DATASET",
        callback=refuse_empty_names,
    ),
]


def parse_scores(text: str | None) -> tuple[str, ...] | None:
    """Parse "mcm,msp" to names of scores; None for none; ValueError for one that there is not."""
    from vlprompt.engine.unknown_scores import require_score

    names = None if text is None else tuple(name.strip() for name in text.split(","))
    for name in names or ():
        require_score(name)
    return names


def require_prediction_writer(is_needed: bool) -> None:
    """OSError where files of predictions are needed and can't be written, before anything runs."""
    if is_needed:
        from vlprompt.runtime.installation import require_package

        require_package("pyarrow.parquet", "parquet", "--keep-predictions")


def parse_trackers(text: str | None) -> tuple[str, ...]:
    """Parse names of trackers; ValueError or OSError for those that can't be used, before anything runs."""
    if text is None:
        return ()
    from vlprompt.experiments.trackers import choice

    return choice.parse_trackers(text)


def parse_integers(text: str | None, option: str) -> list[int | None]:
    """Parse "1,2,4" to [1, 2, 4], and no text to [None]."""
    if text is None:
        return [None]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--{option}: expected whole numbers separated by commas, got {text!r}. Write --{option} 1,2,4."
        ) from None


def require_one_run(paths: list[Path]) -> None:
    """ValueError where a pattern such as runs/coop-* has matched several run folders."""
    runs = [str(path) for path in paths if (path / "config.yaml").is_file()]
    if len(runs) > 1:
        raise ValueError(f"run: expected one run, got {len(runs)} ({', '.join(runs)}). Name one, or a longer pattern.")


def set_data_root(root: Path | None) -> None:
    """Set the folder of datasets for this process."""
    if root is not None:
        SETTINGS.data_root = root.expanduser()


def set_feature_cache(folder: str | None) -> None:
    """Set the folder of the feature cache for this process."""
    if folder is not None:
        SETTINGS.feature_cache = folder


def set_data_verification(verify: bool) -> None:
    """Set whether contents are compared by reading all files again."""
    SETTINGS.verify_data = verify


def set_memory_limit(gigabytes: float | None) -> None:
    """Limit the memory of the process, in GB (2**30 bytes)."""
    if gigabytes is not None:
        from vlprompt.runtime import memory

        memory.set_limit(gigabytes)


def set_image_decoding(workers: int | None, cache_gigabytes: float | None) -> None:
    """Set the number of decoding threads and the size of the cache of decoded images, in GB (2**30 bytes)."""
    if cache_gigabytes is not None and not 0 <= cache_gigabytes < float("inf"):
        raise ValueError(f"--image-cache: expected at least 0 GB, got {cache_gigabytes}. Set --image-cache 0.5.")
    if workers is not None:
        from vlprompt.runtime import threads

        threads.set_workers(workers)
    if cache_gigabytes is not None:
        from vlprompt.data.images.cache import IMAGE_CACHE

        IMAGE_CACHE.set_max_bytes(int(cache_gigabytes * 2**30))


@contextmanager
def join_processes(device: str | None, processes: int | None, console: Console) -> Iterator[tuple[str | None, Console]]:
    """Open the process group; yield the device of this process, and a console for the first process only."""
    with distributed.open_process_group(device, processes) as process_device:
        yield process_device, console if distributed.is_main_process() else make_console(quiet=True)


def reject_extra_processes(context: typer.Context) -> None:
    """Refuse torchrun for all commands but `run`."""
    if context.invoked_subcommand not in (None, "run"):
        distributed.require_single_process(f"vlprompt {context.invoked_subcommand}")
