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
    OptionalRunArgument,
    RejectOption,
    RootOption,
    ScoreOption,
    SkipBrokenOption,
    UnknownOption,
    ValidationOption,
    expand_home,
    parse_scores,
    refuse_empty_names,
    require_one_run,
    require_prediction_writer,
    set_data_root,
    set_feature_cache,
)

console = make_console()


def evaluate(
    folder: OptionalRunArgument = None,
    dataset: Annotated[
        list[str] | None,
        typer.Argument(
            help="A card's name, a folder or file of images; its classes are the answers. Default: what the run was "
            "tested on.",
            metavar="DATASET",
            callback=refuse_empty_names,
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
    keep_predictions: Annotated[
        Path | None,
        typer.Option(
            "--keep-predictions",
            help="Write name, label, prediction and logits of each test item into this Parquet file; with --unknown "
            "also the unknown items, and the scores of all.",
            metavar="FILE",
            callback=expand_home,
        ),
    ] = None,
    from_predictions: Annotated[
        Path | None,
        typer.Option(
            "--from-predictions",
            help="Compute metrics of such a file, instead of testing a RUN.",
            metavar="FILE",
            callback=expand_home,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Of --from-predictions: names of metrics and tables, such as ece15,macro_f1,per_class; all are in the "
            "reference, page Metrics.",
            metavar="NAME[,NAME]",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Of --from-predictions: another file of the same test items; adds the difference of each metric with "
            "its paired bootstrap interval, and McNemar's test.",
            metavar="FILE",
            callback=expand_home,
        ),
    ] = None,
) -> None:
    """Test a learned prompt on the test split of a dataset, also one with other classes, or against unknown ones.

    With --unknown, for each score: AUROC; FPR95, the share of the unknown accepted at the threshold whose share of the
    known accepted is closest to 95 % (fpr95) and at the strictest that accepts at least 95 % (fpr95_at_least); AUPR
    with the known (aupr_in) and with the unknown positive (aupr_out). In percent.

    With --from-predictions, and without a RUN: any metric of a file that --keep-predictions wrote.
    """
    if from_predictions is not None:
        if folder is not None:
            raise ValueError(
                f"eval: expected a RUN or --from-predictions, got {str(folder)!r} and both. Leave one of them out."
            )
        _score_file(from_predictions, metric, against)
        return
    folder = _require_run(folder, metric, against)
    from vlprompt.experiments.calibration.choice import Selection
    from vlprompt.experiments.evaluation import evaluate_run

    require_prediction_writer(keep_predictions is not None)
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
    evaluation = evaluate_run(
        folder, name, backbone, device, skip_broken, figure, layout, report, selection, keep_predictions
    )
    for line in format_evaluation(evaluation):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for path in (path for path in (figure, keep_predictions) if path is not None):
        console.print(f"wrote {path}")


def _require_run(folder: Path | None, metric: str | None, against: Path | None) -> Path:
    """Return the RUN; ValueError for unknown metrics, without a RUN, or with an option of --from-predictions."""
    given = [name for name, value in (("--metric", metric), ("--against", against)) if value is not None]
    if metric is not None:
        from vlprompt.experiments.prediction_scores import parse_metrics

        parse_metrics(metric)
    if given and folder is not None:
        raise ValueError(
            f"eval: expected --from-predictions with {given[0]}, got none. Write the predictions of the run by "
            f"`vlprompt eval {folder} --keep-predictions FILE`, and name FILE by --from-predictions."
        )
    if given or folder is None:
        wanted = f"--from-predictions with {given[0]}" if given else "a RUN or --from-predictions FILE"
        raise ValueError(f"eval: expected {wanted}, got none. Name the folder of a run, or a file of predictions.")
    return folder


def _score_file(path: Path, metric: str | None, against: Path | None) -> None:
    """Print metrics of a file of predictions, and how it differs from another."""
    from vlprompt.cli.display.evaluation_lines import format_prediction_scores
    from vlprompt.experiments.prediction_scores import parse_metrics, score_predictions
    from vlprompt.results.prediction_files import read_predictions

    names = parse_metrics(metric)
    other = None if against is None else read_predictions(against)
    scores = score_predictions(read_predictions(path), names, other)
    for line in format_prediction_scores(scores):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
