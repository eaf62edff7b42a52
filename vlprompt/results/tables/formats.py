"""Tables over runs as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from vlprompt.results.comparability import DOMAIN, STREAM
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.domains import flat as domains
from vlprompt.results.tables.domains import grids
from vlprompt.results.tables.summary import UNITS, Grid, Row, marked


def render(found: Sequence[Row], form: str) -> str:
    """As "markdown", "csv" or "json"."""
    if form == "markdown":
        return markdown(grids(found), UNITS)
    flat = []
    for key in dict.fromkeys(r.table for r in found):
        some = [r for r in found if r.table == key]
        if key[0] == DOMAIN:
            flat += domains(some, runs=form == "json")
            continue
        letters, notes = marked(some)
        meant = dict(note.split(": ", 1) for note in notes)
        for r in some:
            letter = letters[id(r)]
            flat.append(r.flat() | ({"protocol": letter, "differs": meant.get(letter, "")} if notes else {}))
            if form == "json" and r.task == STREAM:
                flat[-1]["runs"] = [one_run(result) for result in r.runs]
    return as_data(flat, form)


def matrix(result: Result) -> list[list[float]]:
    """A (T, T): accuracy after lesson t (row) on the test images of lesson i (column), as far as they were seen."""
    return [[test["accuracy"] for name, test in tests.items() if name.startswith("seen/")] for tests in result.scores]


def one_run(result: Result) -> dict[str, Any]:
    """A run of a stream lesson by lesson, for JSON."""
    order = result.protocol.get("class_order")
    about = {"seed": result.config["seed"], "class_order": order, "matrix": matrix(result), "stages": result.stages}
    return about | {"seen": [tests["seen"]["accuracy"] for tests in result.scores if "seen" in tests]}


def markdown(found: Sequence[Grid], units: str) -> str:
    parts = []
    for grid in found:
        lines = [grid.head, ["---", *["---:"] * (len(grid.head) - 1)], *grid.lines]
        notes = "\n\n" + "\n".join(f"- {note}" for note in grid.notes) if grid.notes else ""
        parts.append(f"**{grid.title}** ({units})\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + notes)
    return "\n\n".join(parts) + "\n"


def as_data(flat: Sequence[dict[str, Any]], form: str) -> str:
    """Every number as "csv" or "json"."""
    if form == "json":
        return json.dumps(flat, indent=1) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in flat for k in row)))
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
