"""Show the plan of a sweep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlprompt.cli.display.terminal import show_tables

if TYPE_CHECKING:
    from rich.console import Console

    from vlprompt.experiments.sweeps.expansion import ImpossibleRun
    from vlprompt.experiments.sweeps.plan import PlanGroup, SweepPlan

MAX_SHOWN_REASONS = 10
OPTIONAL_COLUMNS = "settings", "changed"  # shown where a row has something there


def show_plan(
    plan: "SweepPlan",
    impossible: "dict[str, ImpossibleRun]",
    n_workers: int,
    console: "Console",
    side_by_side: bool = False,
) -> None:
    """Print a line for the runs of each method, dataset and number of shots, their sums, and what is impossible."""
    from vlprompt.experiments.planning.planned_memory import format_duration
    from vlprompt.experiments.sweeps.expansion import list_reasons
    from vlprompt.results.tables.formats import Table

    rows = [_build_row(group) for group in plan.groups]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in columns if name not in OPTIONAL_COLUMNS or any(row[name].strip("0") for row in rows)]
    if rows:
        cells = [[row[name] for name in columns] for row in rows]
        show_tables([Table("What would run", columns, cells, left_columns=("method", "settings"))], console)
    n_runs, n_left = (sum(getattr(group, name) for group in plan.groups) for name in ("n_runs", "n_left"))
    n_changed = sum(group.n_changed for group in plan.groups)
    seconds, n_unknown = plan.sum_left(lambda group: group.seconds)
    size, n_unsized = plan.sum_left(lambda group: group.disk_bytes)
    line = f"{n_runs:,} run{'s' * (n_runs != 1)}, {n_left:,} left"
    line += f", {n_changed:,} of them changed" if n_changed else ""
    line += f", {sum(run.n_runs for run in impossible.values()):,} impossible" * bool(impossible)
    if n_left > n_unknown:
        line += f"; {format_duration(seconds / n_workers)} with {n_workers} worker{'s' * (n_workers > 1)}"
        line += f" and {n_unknown} runs of unknown time" if n_unknown else ""
    elif n_left:
        line += "; time and memory are not known before a run is done: --calibrate measures a step"
    line += f"; {size / 1e6:.1f} MB of disk" if n_left > n_unsized else ""
    console.print(line, highlight=False, soft_wrap=True)
    if any(group.seconds is not None for group in plan.groups):
        note = "; what training side by side saves is not counted" * side_by_side
        console.print(_explain_costs(plan.groups) + note, style="dim", highlight=False, soft_wrap=True)
    _show_lines("impossible", list_reasons(impossible), console)
    _show_lines("changed", plan.changed, console)
    _show_lines("missing", plan.missing, console)


def _explain_costs(groups: "Sequence[PlanGroup]") -> str:
    sources = {
        "of finished runs": any(group.is_measured for group in groups),
        "of a step and a test measured here, without what cached features save": any(
            group.seconds is not None and not group.is_measured for group in groups
        ),
    }
    return "s: seconds a run, MB: peak memory; " + ", else ".join(text for text, is_used in sources.items() if is_used)


def _show_lines(name: str, lines: Sequence[str], console: "Console") -> None:
    for line in lines[:MAX_SHOWN_REASONS]:
        console.print(f"{name}: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if len(lines) > MAX_SHOWN_REASONS:
        console.print(f"{name}: {len(lines) - MAX_SHOWN_REASONS} more", style="yellow", highlight=False)


def _build_row(group: "PlanGroup") -> dict[str, str]:
    """Return the cells of a group by column."""
    return {
        "dataset": group.dataset,
        "method": group.method,
        "settings": " ".join(f"{key}={value}" for key, value in group.settings.items()),
        "shots": "all" if group.shots is None else str(group.shots),
        "runs": str(group.n_runs),
        "done": str(group.n_done),
        "begun": str(group.n_begun),
        "changed": str(group.n_changed),
        "s": "?" if group.seconds is None else f"{group.seconds:.1f}",
        "MB": "?" if group.peak_mb is None else f"{group.peak_mb:.0f}",
    }
