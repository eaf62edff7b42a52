"""The command `vlprompt run`. Heavy libraries are imported when it runs, so that --help is instant."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from vlprompt.cli.options import (
    Device,
    Features,
    Memory,
    PictureMemory,
    Processes,
    Root,
    SkipBroken,
    Threads,
    Workers,
    numbers,
    together,
    use_features,
    use_memory,
    use_pictures,
    use_root,
)

out = Console()


def _names_methods(text: str) -> bool:
    from vlprompt.methods import found

    return all(part in found() or ":" in part for part in text.split(","))


def run(
    method: Annotated[Optional[str], typer.Argument(help="A method, or several with commas: coop,cocoop.")] = None,  # noqa: UP045
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="A dataset (a card's name, a folder or file of images or texts), then key=value settings.",
            metavar="[DATASET] [KEY=VALUE]...",
        ),
    ] = None,
    dataset: Annotated[Optional[str], typer.Option(help="The dataset, if not given as an argument.")] = None,  # noqa: UP045
    task: Annotated[
        str | None, typer.Option(help="few_shot (default), base_to_new, transfer, vtab, continual, domain, text.")
    ] = None,
    targets: Annotated[Optional[str], typer.Option(help="Of a transfer: datasets with commas.")] = None,  # noqa: UP045
    source: Annotated[
        str | None,
        typer.Option(help="Of domains: one, several at once with commas, rest or none; default each in turn."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Of domains: one, or several in turn with commas.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="glyph (default), open_clip:NAME/TAG, open_clip:NAME@FILE, hf_clip:OWNER/NAME, pixels; without "
            "texts glyph-vit, timm:NAME/TAG, timm:NAME@FILE; hf:FOLDER a language model. All: vlprompt list backbones."
        ),
    ] = None,
    shots: Annotated[Optional[str], typer.Option(help="Images or texts per class; several with commas.")] = None,  # noqa: UP045
    seed: Annotated[Optional[str], typer.Option(help="Random seed; several with commas.")] = None,  # noqa: UP045
    config: Annotated[Optional[Path], typer.Option("-c", "--config", help="A YAML file of settings.")] = None,  # noqa: UP045
    runs: Annotated[Path, typer.Option("-o", "--out", help="Where run folders go.")] = Path("runs"),
    device: Device = None,
    root: Root = None,
    skip_broken: SkipBroken = False,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between two saved states.")] = 5.0,
    threads: Threads = None,
    workers: Workers = None,
    picture_memory: PictureMemory = None,
    until_task: Annotated[
        int | None, typer.Option(min=1, help="Pause a stream after so many lessons; without it the command goes on.")
    ] = None,
    views: Annotated[
        int | None, typer.Option(min=1, help="How many augmented views of an image exist; default: one per epoch.")
    ] = None,
    features: Features = None,
    memory: Memory = None,
    processes: Processes = None,
) -> None:
    """Train and test: every combination of methods, shots and seeds (and pairs of domains), one folder each.

    What is finished is not done again, and what was stopped goes on where it was, so the same command can be given
    until it is through. Settings: recipe of the method < -c file < options < key=value, for example method.n_ctx=4
    train.epochs=20.
    """
    from vlprompt.experiments.sweep import sweep

    use_root(root)
    use_features(features)
    use_pictures(workers, picture_memory)
    use_memory(memory)
    words = [w for w in (words or []) if w]
    if method and "=" in method:
        method, words = None, [method, *words]
    if config is not None and method and not _names_methods(method):
        method, words = None, [method, *words]  # the file names the method, the argument the dataset
    words = [w.removeprefix("dataset=") for w in words]
    plain = [w for w in words if "=" not in w]
    if len(plain) > 1:
        raise ValueError(f"one dataset at a time: got {', '.join(plain)}; settings are written key=value")
    settings = [f"task.targets=[{targets}]"] if targets else []
    settings += [f"train.views={views}"] if views else []
    settings += [w for w in words if "=" in w] + (["task.skip_broken=true"] if skip_broken else [])
    methods = [m for m in method.split(",") if m] if method else [None]
    with together(device, processes, out) as (own, seen):
        sweep(methods, numbers(shots, "shots"), numbers(seed, "seed"), dataset=dataset or (plain[0] if plain else None),
              task=task, source=source, target=target, backbone=backbone, file=config, settings=settings, runs=runs,
              device=own, save_every=save_every, threads=threads, out=seen, until=until_task)  # fmt: skip
