"""Tables on a terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.segment import SegmentLines
from rich.table import Table

from vlprompt.results.run_folder import Result
from vlprompt.results.tables.benchmarks import UNITS as GROUP_UNITS
from vlprompt.results.tables.benchmarks import Score, final_tasks, lacking, scores, turned
from vlprompt.results.tables.benchmarks import grids as group_grids
from vlprompt.results.tables.domains import grids
from vlprompt.results.tables.summary import UNITS, Grid, Row
from vlprompt.runtime.errors import nearest


def show_table(found: Sequence[Row], out: Console) -> None:
    """The table of rows on the terminal, without the columns of cost where it is too narrow.

    Says so where there is none. Where no column may be left out, lines and columns change places.
    """
    if not found:
        out.print("no finished runs here yet; `vlprompt run coop digits` makes one")
    show_grids([grid if grid.cost or _fits(grid, out) else turned(grid) for grid in grids(found)], out)
    if found:
        out.print(UNITS, style="dim", soft_wrap=True)


def show_grids(found: Sequence[Grid], out: Console) -> None:
    """Tables on the terminal with their footnotes, without the columns that may be left out where it is too narrow."""
    for grid in found:
        every = len(grid.head)
        shown = [every, *range(every - grid.cost, every - grid.cost - grid.spare - 1, -1)]
        fits = next((k for k in shown if _width(_table(grid, k), out) <= out.width), shown[-1])
        whole(_table(grid, fits), out)
        for note in grid.notes:
            out.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)
        if fits < every:
            out.print(f"({', '.join(grid.head[fits:])}: in a wider terminal, or by --markdown)", style="dim")


def whole(table: Table, out: Console) -> None:
    """A table with all its columns, on a terminal that is too narrow too: it breaks the lines, no number is cut."""
    options = out.options.update(max_width=1000)
    lines = out.render_lines(table, options.update(width=out.measure(table, options=options).maximum), pad=False)
    out.print(SegmentLines(lines, new_lines=True), soft_wrap=True)


def _fits(grid: Grid, out: Console) -> bool:
    return _width(_table(grid, len(grid.head)), out) <= out.width


def _width(table: Table, out: Console) -> int:
    return out.measure(table, options=out.options.update(max_width=1000)).maximum


def scored(results: Sequence[Result], name: str | None = None) -> dict[str, list[Score]]:
    """{set of datasets: scores}; without a name the sets that have every dataset of the runs of the task vtab.

    ValueError for a name that is no set, or of which there are no runs.
    """
    from vlprompt.data.dataset_groups import groups

    known = groups()
    if name is not None and name not in known:
        raise ValueError(f"there is no set of datasets {name!r}; {nearest(name, known)}")
    found = {n: some for n in known if name in (None, n) and (some := scores(results, n, known[n]))}
    if name is not None and not found:
        raise ValueError(f"there are no finished runs of {name} here; `vlprompt search linear {name}` makes them")
    here = {task for some in found.values() for s in some for task in (*s.tasks, *s.several)}
    return found if name is not None or here >= final_tasks(results) else {}


def show_scores(found: dict[str, list[Score]], out: Console) -> None:
    """Group means on the terminal, and what keeps one from being shown."""
    from vlprompt.data.dataset_groups import groups

    for name, some in found.items():
        made = group_grids(some, name, groups()[name])
        show_grids([turned(grid) for grid in made] if len(some) < 5 else made, out)
        for line in lacking(some):
            out.print(line, style="yellow", soft_wrap=True)
    if found:
        out.print(GROUP_UNITS, style="dim", soft_wrap=True)


def render_scores(found: dict[str, list[Score]], form: str) -> str:
    """One set's scores as "markdown", "csv" or "json"."""
    from vlprompt.data.dataset_groups import groups
    from vlprompt.results.tables.benchmarks import render

    [(name, some)] = found.items()
    return render(some, name, groups()[name], form)


def _table(grid: Grid, columns: int) -> Table:
    table = Table(title=grid.title, title_justify="left", box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for i, name in enumerate(grid.head[:columns]):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in grid.lines:
        table.add_row(*line[:columns])
    return table
