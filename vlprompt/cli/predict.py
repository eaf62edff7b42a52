"""The commands `vlprompt eval` and `vlprompt predict`. Heavy libraries are imported when they run."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from vlprompt.cli.options import (
    Device,
    Features,
    Root,
    SkipBroken,
    use_features,
    use_root,
)
from vlprompt.cli.results import Where

out, err = Console(), Console(stderr=True)


def eval_(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")],
    dataset: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            help="A card's name, a folder or file of images; its classes are the answers. Default: what the run was "
            "tested on."
        ),
    ] = None,
    backbone: Where = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            help="Also draw 40 test images with their predictions into this PNG; of a target also what the frozen CLIP "
            "says, in brackets where it is not sure enough to be learned from.",
        ),
    ] = None,
    device: Device = None,
    root: Root = None,
    skip_broken: SkipBroken = False,
    features: Features = None,
) -> None:
    """Test a learned prompt on the test split of a dataset, also one with other classes."""
    from vlprompt.experiments.predict_images import evaluate_on

    use_root(root)
    use_features(features)
    for name, value in evaluate_on(folder, dataset, backbone, device, skip_broken, picture).items():
        out.print(f"{name:18} {value:.2f}", highlight=False)
    if picture is not None:
        out.print(f"wrote {picture}")


def predict(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")],
    files: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(
            help="Image files; of a run on texts a .txt or .jsonl with one on each line.", metavar="[FILE]..."
        ),
    ] = None,
    text: Annotated[Optional[list[str]], typer.Option(help="A text; may be given again.")] = None,  # noqa: UP045
    top: Annotated[int, typer.Option(min=1, help="How many classes to tell for each.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="All probabilities (or responses) as JSON.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="All probabilities (or responses) as CSV.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Also draw the images with their predictions into this PNG.")
    ] = None,
    backbone: Where = None,
    device: Device = None,
    skip_broken: SkipBroken = False,
    features: Features = None,
) -> None:
    """Say what is in images or texts, with probabilities, or answer texts, by the prompt that a run has learned."""
    from vlprompt.cli import prediction_formats as formats
    from vlprompt.experiments import predict_images, predict_texts

    use_features(features)
    files = files or []
    if text or (files and all(path.suffix in (".txt", ".jsonl") for path in files)):
        if picture is not None:
            raise ValueError("texts can't be drawn into a picture: leave --picture out")
        given = [*(text or []), *(one for path in files for one in predict_texts.texts_in(path))]
        told = predict_texts.predict_texts(folder, given, backbone, device)
        form = (
            formats.texts_as_json(told)
            if json
            else formats.texts_as_csv(told)
            if csv
            else formats.texts_as_lines(told, top)
        )
        sys.stdout.write(form)
        return
    if not files:
        raise ValueError("there is nothing to predict: give image files, or texts by --text or in a .txt or .jsonl")
    found = predict_images.predict_files(folder, files, backbone, device, skip_broken)
    form = formats.as_json(found) if json else formats.as_csv(found) if csv else formats.as_lines(found, top)
    sys.stdout.write(form)
    if picture is not None:
        err.print(f"wrote {predict_images.draw(found, picture)}")
