"""Show the plan of a sweep."""

from typing import TYPE_CHECKING

from vlprompt.cli.display.terminal import show_tables

if TYPE_CHECKING:
    from rich.console import Console

    from vlprompt.experiments.sweeps.plan import PlanGroup, SweepPlan

MAX_SHOWN_REASONS = 10


def show_plan(plan: "SweepPlan", impossible: dict[str, str], n_workers: int, console: "Console") -> None:
    """Print a line for the runs of each method, dataset and number of shots, their sums, and what is impossible."""
    from vlprompt.experiments.memory_plan import format_duration
    from vlprompt.results.tables.formats import Table

    header = ["dataset", "method", "shots", "runs", "done", "begun", "s per run", "MB"]
    rows = [_build_row(group) for group in plan.groups]
    if rows:
        show_tables([Table("What would run", header, rows, left_columns=("method",))], console)
    n_runs, n_left = (sum(getattr(group, name) for group in plan.groups) for name in ("n_runs", "n_left"))
    seconds, n_unknown = plan.sum_left(lambda group: group.seconds)
    size, n_unsized = plan.sum_left(lambda group: group.disk_bytes)
    line = f"{n_runs} runs, {n_left} left"
    if n_left > n_unknown:
        line += f"; {format_duration(seconds / n_workers)} with {n_workers} worker{'s' * (n_workers > 1)}"
        line += f" and {n_unknown} runs of unknown time" if n_unknown else ""
    elif n_left:
        line += "; time and memory are not known before a run is done: --calibrate measures a step"
    line += f"; {size / 1e6:.1f} MB of disk" if n_left > n_unsized else ""
    console.print(line, highlight=False, soft_wrap=True)
    if any(group.is_measured for group in plan.groups):
        console.print("s per run and MB: of finished runs", style="dim")
    for reason in list(impossible.values())[:MAX_SHOWN_REASONS]:
        console.print(f"impossible: {reason}", style="yellow", highlight=False, soft_wrap=True)


def _build_row(group: "PlanGroup") -> list[str]:
    shots = "all" if group.shots is None else str(group.shots)
    counts = map(str, (group.n_runs, group.n_done, group.n_begun))
    costs = (
        "?" if group.seconds is None else f"{group.seconds:.1f}",
        "?" if group.peak_mb is None else f"{group.peak_mb:.0f}",
    )
    return [group.dataset, group.method, shots, *counts, *costs]
