"""The command `vlprompt eval`."""

from pathlib import Path
from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import (
    DeviceOption,
    FeatureCacheOption,
    LayoutOption,
    MovedBackboneOption,
    RootOption,
    RunArgument,
    SkipBrokenOption,
    require_one_run,
    set_data_root,
    set_feature_cache,
)

console = make_console()


def evaluate(
    folder: RunArgument,
    dataset: Annotated[
        list[str] | None,
        typer.Argument(
            help="A card's name, a folder or file of images; its classes are the answers. Default: what the run was "
            "tested on.",
            metavar="DATASET",
        ),
    ] = None,
    backbone: MovedBackboneOption = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure",
            help="Also draw 40 test images with their predictions into this PNG; of a target also what the frozen CLIP "
            "predicts, in brackets where it is not sure enough to be learned from.",
        ),
    ] = None,
    device: DeviceOption = None,
    root: RootOption = None,
    skip_broken: SkipBrokenOption = False,
    feature_cache: FeatureCacheOption = None,
    layout: LayoutOption = None,
) -> None:
    """Test a learned prompt on the test split of a dataset, also one with other classes."""
    from vlprompt.experiments.evaluation import evaluate_run

    set_data_root(root)
    set_feature_cache(feature_cache)
    require_one_run([folder, *map(Path, dataset or [])])
    if len(names := dataset or []) > 1:
        raise ValueError(f"eval: expected one dataset, got {', '.join(names)}. Give one command for each.")

    def report(note: str) -> None:
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)

    metrics = evaluate_run(folder, names[0] if names else None, backbone, device, skip_broken, figure, layout, report)
    for name, value in metrics.items():
        console.print(f"{name:18} {value:.2f}", highlight=False)
    if figure is not None:
        console.print(f"wrote {figure}")
