"""The command `vlprompt predict`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import (
    DeviceOption,
    FeatureCacheOption,
    MovedBackboneOption,
    RunArgument,
    SkipBrokenOption,
    require_one_run,
    set_feature_cache,
)

error_console = make_console(stderr=True)
TEXT_SUFFIXES = (".txt", ".jsonl")


def predict(
    folder: RunArgument,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Images; of a run on texts a .txt or .jsonl with one on each line.", metavar="[FILE]..."),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; may be given again.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to print for each.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="All probabilities (or responses) as JSON.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="All probabilities (or responses) as CSV.")] = False,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Also draw the images with their predictions into this PNG.")
    ] = None,
    backbone: MovedBackboneOption = None,
    device: DeviceOption = None,
    skip_broken: SkipBrokenOption = False,
    feature_cache: FeatureCacheOption = None,
) -> None:
    """Classify images or texts, or answer texts, by the prompt that a run has learned."""
    from vlprompt.cli.display.prediction_formats import format_image_predictions, format_text_predictions
    from vlprompt.experiments.predict.images import draw_predictions, predict_images
    from vlprompt.experiments.predict.texts import predict_texts, read_texts

    set_feature_cache(feature_cache)
    require_one_run([folder, *(files or [])])
    files, output_format = files or [], "json" if json else "csv" if csv else "lines"
    if text or (files and all(path.suffix in TEXT_SUFFIXES for path in files)):
        if figure is not None:
            raise ValueError(f"--figure: expected images, got texts to draw into {str(figure)!r}. Leave --figure out.")
        texts = [*(text or []), *(line for path in files for line in read_texts(path))]
        answers = predict_texts(folder, texts, backbone, device)
        sys.stdout.write(format_text_predictions(answers, output_format, top))
        return
    if not files:
        raise ValueError(
            "predict: expected image files or texts, got none. Name images, or texts by --text or in a .txt or .jsonl."
        )
    predictions = predict_images(folder, files, backbone, device, skip_broken)
    for prediction in predictions:
        if prediction.error is not None:
            error_console.print(
                f"left out: {prediction.error}", style="yellow", markup=False, highlight=False, soft_wrap=True
            )
    sys.stdout.write(format_image_predictions(predictions, output_format, top))
    if figure is not None:
        error_console.print(f"wrote {draw_predictions(predictions, figure)}")
