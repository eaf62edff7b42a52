"""The command `vlprompt predict`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import (
    DeviceOption,
    FeatureCacheOption,
    MovedBackboneOption,
    WorkersOption,
    expand_home,
    set_feature_cache,
    set_image_decoding,
)

if TYPE_CHECKING:
    from vlprompt.experiments.predict.figure import PredictionFigure
    from vlprompt.experiments.predict.prediction import PredictionCounts, SeenPaths, Sink
    from vlprompt.experiments.predict.prompts import Ensemble
    from vlprompt.experiments.predict.read_ahead import OpenedInput
    from vlprompt.experiments.predict.request import PredictionRequest
    from vlprompt.experiments.predict.rows import Row

error_console = make_console(stderr=True)
FAILED_STATUS = 1  # some inputs could not be read


def predict(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Run folders or model folders, then images (files, folders, 'patterns', lists .csv .jsonl .txt, .npz, "
            "tar shards, or - for paths from standard input) or, of a run on texts, files of texts.",
            metavar="RUN... [INPUT]...",
        ),
    ],
    text: Annotated[list[str] | None, typer.Option(help="A text; may be given again.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Other classes than the learned ones: a file with one in each line, or a,b,c."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many classes to give for each input: 3 by default, all of a prompt for several labels.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Of a prompt for several labels: give those of a probability above this one, between 0 and 1; by "
            "default above the one that its run has chosen on validation images.",
            show_default=False,
        ),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Of several prompts also the prediction of each.")] = False,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="lines (default), json, jsonl or csv; with --out also parquet.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Write rows into this file (.jsonl, .json, .csv, .parquet); when stopped, the same command goes on.",
            callback=expand_home,
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Write the file of --out anew.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs at once; the answers are the same.")] = 100,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Also draw the first images with their predictions into this PNG.")
    ] = None,
    backbone: MovedBackboneOption = None,
    device: DeviceOption = None,
    feature_cache: FeatureCacheOption = None,
    workers: WorkersOption = None,
) -> None:
    """Classify images or texts, label images, or answer texts, by one or several learned prompts."""
    from vlprompt.experiments.predict.figure import PredictionFigure, require_figure_path
    from vlprompt.experiments.predict.request import PredictionRequest

    set_feature_cache(feature_cache)
    set_image_decoding(workers, None)
    request = PredictionRequest(words, text or [], classes, top_k, each, threshold)
    if figure is not None and request.takes_texts:
        raise ValueError(f"--figure: expected images, got texts to draw into {str(figure)!r}. Leave --figure out.")
    if figure is not None:
        require_figure_path(figure)
    prediction = _Prediction(request, batch_size, backbone, device, PredictionFigure())
    if out is None:
        counts = prediction.print_rows(output_format or "lines")
    else:
        counts = prediction.write_rows(out, output_format, fresh)
    if figure is not None:
        error_console.print(f"wrote {prediction.figure.draw(figure)}")
    if counts.n_failed:
        raise typer.Exit(FAILED_STATUS)


@dataclass
class _Prediction:
    """A request, and how it is computed."""

    request: "PredictionRequest"
    batch_size: int
    backbone: str | None
    device: str | None
    figure: "PredictionFigure"

    def print_rows(self, output_format: str) -> "PredictionCounts":
        """Print rows as their batches are done."""
        from vlprompt.cli.display.prediction_formats import open_writer, require_printed_format
        from vlprompt.experiments.predict.tables import list_columns

        require_printed_format(output_format)
        ensemble = self._load()
        writer = open_writer(output_format, sys.stdout, list_columns(ensemble, self.request.layout))

        def write(batch: "Sequence[OpenedInput]", rows: "Sequence[Row]") -> None:
            self.figure.add(batch, rows)
            writer.write(rows)

        counts = self._predict(ensemble, write, None, has_progress=not sys.stdout.isatty())
        writer.close()
        _report(counts)
        return counts

    def write_rows(self, path: Path, output_format: str | None, is_fresh: bool) -> "PredictionCounts":
        """Write rows into a file, or go on where the same command was stopped."""
        from vlprompt.experiments.predict.output import RowFile, find_file_format
        from vlprompt.experiments.predict.tables import list_columns, require_writer

        output_format = find_file_format(path, output_format)
        self.request.require_other_file(path)
        require_writer(output_format)
        row_file = RowFile(path, self.request.describe_settings(), is_fresh)
        ensemble = self._load()
        with row_file.open() as partial_file:

            def write(batch: "Sequence[OpenedInput]", rows: "Sequence[Row]") -> None:
                self.figure.add(batch, rows)
                partial_file.append(batch, rows)

            counts = self._predict(ensemble, write, partial_file.read_before(), has_progress=True)
            if counts.n_failed == counts.n_inputs:
                row_file.discard()
            _report(counts)
            row_file.finish(output_format, list_columns(ensemble, self.request.layout))
        error_console.print(f"wrote {path}: {counts.n_inputs:,} rows", highlight=False, soft_wrap=True)
        return counts

    def _load(self) -> "Ensemble":
        if len(self.request.sources) > 1:
            error_console.print(f"ensemble of {len(self.request.sources)} prompts", highlight=False)
        ensemble = self.request.load(self.backbone, self.device)
        for note in ensemble.notes:
            _notify(note)
        return ensemble

    def _predict(
        self,
        ensemble: "Ensemble",
        write: "Sink",
        before: "tuple[SeenPaths, PredictionCounts] | None",
        has_progress: bool,
    ) -> "PredictionCounts":
        from vlprompt.cli.display.progress import ProgressDisplay
        from vlprompt.experiments.events import ignore_event
        from vlprompt.experiments.predict.prediction import predict_inputs

        has_progress = has_progress and error_console.is_terminal
        total = self.request.count_inputs() if has_progress or before is not None else None
        if before is not None and (n_before := before[1].n_before):
            of_all = "" if total is None else f" of {total:,}"
            error_console.print(f"{n_before:,}{of_all} were done before", highlight=False)
        stdin = None if sys.stdin is None else sys.stdin.buffer  # None where it was closed
        inputs = self.request.iter_inputs(stdin, _notify)
        with ProgressDisplay(error_console) as display:
            listener = display if has_progress else ignore_event
            return predict_inputs(
                ensemble, inputs, write, self.request.layout, self.batch_size, before, total, listener
            )


def _notify(note: str) -> None:
    error_console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _report(counts: "PredictionCounts") -> None:
    """Show what could not be read; ValueError where that is all."""
    if not counts.n_inputs:
        raise ValueError("predict: expected images or texts, got none in the inputs. Name others.")
    if counts.n_failed == counts.n_inputs:
        many = f"predict: expected inputs that can be read, got {counts.n_inputs:,} that can't, the first of them: "
        raise ValueError(f"{many if counts.n_inputs > 1 else ''}{counts.first_errors[0]}")
    from vlprompt.cli.display.prediction_formats import describe_failures

    for line in describe_failures(counts):
        _notify(line)
