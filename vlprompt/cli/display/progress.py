"""Show the events of experiments on the terminal: a progress bar for what is under way, a line for what is done."""

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.text import Text

    from vlprompt.experiments.events import DatasetOpened, Event, RunFinished, StepDone

StyledText: TypeAlias = str | tuple[str, str]  # a text, or a text and its style


class ProgressDisplay:
    """A listener of `run_configs` and `run_search`; its bars end with the with-block.

    Args:
        console: where to write.
    """

    def __init__(self, console: "Console") -> None:
        self.console = console
        self._progress: Progress | None = None
        self._total: TaskID | None = None  # the bar of all runs
        self._current: TaskID | None = None  # the bar of the run, or of the search
        self._datasets = set[str]()  # the summaries that were shown

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, event: "Event") -> None:
        from vlprompt.experiments import events

        match event:
            case events.SweepStarted():
                progress = self._start(has_counts=True)
                self._total = progress.add_task("runs", total=event.n_runs, completed=event.n_finished, note="")
            case events.SearchStarted():
                name = f"{event.dataset}: searching {event.n_settings} settings"
                self._current = self._start(has_counts=False).add_task(name, total=1, note="")
            case events.RunStarted():
                note = f"loading {event.config.backbone}"
                self._end_bar()  # of a run that another process makes
                name = event.name + f" and {event.n_others} side by side" * bool(event.n_others)
                self._current = self._start(has_counts=True).add_task(name, total=1, note=note)
            case events.DatasetOpened():
                self._show_dataset(event)
            case events.Notice():
                style = "yellow" if event.is_warning else "dim"
                self._print(f"{event.name}: {event.text}", style=style)
            case events.StepDone():
                note = f"loss {event.loss:.3f}  lr {event.lr:.1e}"
                self._update(event.step, event.total_steps, f"{_format_activity(event)}  {note}")
            case events.VmapStepDone():
                self._update(event.step, event.total_steps, f"{event.n_settings} settings side by side  ")
            case events.EvaluationProgress():
                self._update(event.n_done, event.n_images, f"testing {event.test}  ")
            case events.PredictionProgress():
                if self._current is None:
                    progress = self._start(has_counts=event.total is not None)
                    self._current = progress.add_task("predicting", total=event.total, note="")
                self._update(event.n_done, event.total, f"{event.n_done:,} done")
            case events.RunFinished():
                if event.change:
                    self._print(f"{event.name}: {event.change}", style="yellow")
                self._end_run(_format_finished_run(event))
            case events.RunFailed():
                again = "" if event.is_final else ", is tried again"
                self._end_run((f"{event.name}: ", (f"failed{again}", "red")), event.is_final)

    def _start(self, has_counts: bool) -> "Progress":
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if self._progress is None:
            text_column = partial(TextColumn, markup=False)  # names may have brackets
            counts = [text_column("{task.completed:.0f}/{task.total:.0f}")] if has_counts else []
            ends = TimeRemainingColumn(), text_column("{task.fields[note]}")
            columns = text_column("{task.description}"), BarColumn(), *counts, *ends
            self._progress = Progress(*columns, console=self.console)
            self._progress.start()
        return self._progress

    def _update(self, n_done: int, total: int | None, note: str) -> None:
        if self._progress is not None and self._current is not None:
            self._progress.update(self._current, completed=n_done, total=total, note=note)

    def _end_bar(self) -> None:
        if self._progress is not None and self._current is not None:
            self._progress.remove_task(self._current)
            self._current = None

    def _end_run(self, parts: "Sequence[StyledText]", is_final: bool = True) -> None:
        from rich.text import Text

        self._end_bar()
        self._print(Text.assemble(*parts))
        if is_final and self._progress is not None and self._total is not None:
            self._progress.advance(self._total)

    def _show_dataset(self, event: "DatasetOpened") -> None:
        if event.summary not in self._datasets:
            self._datasets.add(event.summary)
            show_dataset(event, self.console)

    def _print(self, text: "str | Text", style: str | None = None) -> None:
        self.console.print(text, style=style, highlight=False, soft_wrap=True)


def show_dataset(event: "DatasetOpened", console: "Console") -> None:
    """Print what was taken for a dataset."""
    console.print(event.summary, markup=False, highlight=False, soft_wrap=True)
    for remark in event.remarks:
        console.print(f"note: {remark}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _format_activity(event: "StepDone") -> str:
    return "training" if event.n_lessons == 1 else f"lesson {event.lesson + 1}/{event.n_lessons}"


def _format_finished_run(event: "RunFinished") -> "list[StyledText]":
    from vlprompt.results.tables.formats import name_with_unit

    result = event.result
    scores = "chosen by the oracle  " * ("oracle" in result.protocol["selection"])
    scores += "  ".join(f"{name_with_unit(name)} {value:.1f}" for name, value in result.summary.items())
    paused = f"paused {result.protocol['paused']}  " if "paused" in result.protocol else ""
    return [f"{event.name}: ", (paused, "yellow"), f"{scores} ", (f"({result.cost['seconds']:.1f} s)", "dim")]
