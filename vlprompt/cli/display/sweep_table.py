"""Show where a sweep with workers stands: a live table on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    from vlprompt.experiments.events import Event, RunProgress, SweepProgress

SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal


class SweepDisplay:
    """A listener of `run_sweep`; its table goes with the with-block.

    Args:
        console: where to write.
    """

    def __init__(self, console: "Console") -> None:
        self.console = console
        self._live: Live | None = None
        self._last_line, self._last_time = "", float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: "Event") -> None:
        from vlprompt.cli.display.progress import show_dataset
        from vlprompt.experiments import events

        match event:
            case events.Notice():
                style = "yellow" if event.is_warning else "dim"
                self.console.print(f"{event.name}: {event.text}", style=style, highlight=False, soft_wrap=True)
            case events.DatasetOpened():
                show_dataset(event, self.console)
            case events.SweepProgress():
                self._show(event)

    def _show(self, progress: "SweepProgress") -> None:
        if self.console.is_terminal:
            self._show_table(progress)
            return
        line, now = format_counts(progress), time.monotonic()
        is_due = now - self._last_time >= SECONDS_BETWEEN_LINES
        if line != self._last_line and (is_due or progress.n_done + progress.n_failed == progress.n_runs):
            self.console.print(line, highlight=False, soft_wrap=True)
            self._last_line, self._last_time = line, now

    def _show_table(self, progress: "SweepProgress") -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(build_progress_table(progress), refresh=True)


def format_counts(progress: "SweepProgress") -> str:
    """Format the counts of a sweep in one line."""
    from vlprompt.experiments.planning.planned_memory import format_duration

    parts = [f"{progress.n_done} of {progress.n_runs} runs done", f"{len(progress.running)} running"]
    parts += [f"{progress.n_failed} failed"] if progress.n_failed else []
    parts += [f"{progress.n_waiting} workers wait for their machine"] if progress.n_waiting else []
    parts += [f"about {format_duration(progress.seconds_left)} left"] if progress.seconds_left else []
    return ", ".join(parts)


def build_progress_table(progress: "SweepProgress") -> "Table":
    """Build the table of the runs under way."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=format_counts(progress), title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False
    )
    for run in progress.running:
        table.add_row(Text(run.name), Text(format_activity(run)), Text(run.place, style="dim"))
    return table


def format_activity(run: "RunProgress") -> str:
    """Format how far a run is."""
    return f"{run.activity} {run.n_done}/{run.total}" if run.total else run.activity or "begins"
