"""The command `vlprompt eval`."""

from pathlib import Path
from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.display.evaluation_lines import format_evaluation
from vlprompt.cli.options import (
    CalibrateOption,
    DeviceOption,
    FeatureCacheOption,
    LayoutOption,
    MovedBackboneOption,
    RejectOption,
    RootOption,
    RunArgument,
    ScoreOption,
    SkipBrokenOption,
    UnknownOption,
    ValidationOption,
    parse_scores,
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
    unknown: UnknownOption = None,
    score: ScoreOption = None,
    reject: RejectOption = None,
    calibrate: CalibrateOption = False,
    validation: ValidationOption = None,
) -> None:
    """Test a learned prompt on the test split of a dataset, also one with other classes, or against unknown ones.

    With --unknown, for each score: AUROC; FPR95, the share of the unknown accepted at the threshold whose share of the
    known accepted is closest to 95 % (fpr95) and at the strictest that accepts at least 95 % (fpr95_at_least); AUPR
    with the known (aupr_in) and with the unknown positive (aupr_out). In percent.
    """
    from vlprompt.experiments.calibration.choice import Selection
    from vlprompt.experiments.evaluation import evaluate_run

    set_data_root(root)
    set_feature_cache(feature_cache)
    require_one_run([folder, *map(Path, dataset or [])])
    if len(names := dataset or []) > 1:
        raise ValueError(f"eval: expected one dataset, got {', '.join(names)}. Give one command for each.")

    def report(note: str) -> None:
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)

    selection = Selection(unknown, parse_scores(score), calibrate, reject, validation)
    selection.require_use("eval")
    name = names[0] if names else None
    evaluation = evaluate_run(folder, name, backbone, device, skip_broken, figure, layout, report, selection)
    for line in format_evaluation(evaluation):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if figure is not None:
        console.print(f"wrote {figure}")
