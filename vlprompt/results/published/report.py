"""Our results against the published ones: on the terminal, as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vlprompt.results.comparability import DOMAIN, Notes
from vlprompt.results.published.aggregate import Ours
from vlprompt.results.published.compare import Pair
from vlprompt.results.tables.domains import ORACLE
from vlprompt.results.tables.terminal import whole
from vlprompt.runtime.errors import nearest

KINDS = ("published",)
HEAD = ["dataset", "method", "shots", "number", "ours", "published", "difference", "source", "not comparable"]
UNITS = "percent; ours: mean±standard deviation over n seeds; difference: ours - published"


def check(kind: str) -> None:
    """ValueError for something that results can't be set against."""
    if kind not in KINDS:
        raise ValueError(f"--against knows no {kind!r}; {nearest(kind, KINDS)}")


def blocks(pairs: Sequence[Pair]) -> list[tuple[str, list[list[str]], list[str]]]:
    """(title, lines under HEAD, footnotes), one for each task and backbone of ours."""
    made = []
    for key in dict.fromkeys((p.ours.key[0], p.ours.key[3]) for p in pairs):
        sources, reasons, lines = Notes(letters=False), Notes(letters=True), []
        for p in (p for p in pairs if (p.ours.key[0], p.ours.key[3]) == key):
            _, method, shots, _ = p.ours.key
            origin, about = p.theirs.origin, f"{p.theirs.title}, {p.theirs.backbone}"
            said = "; ".join(part for part in (origin.text, about, origin.how, p.theirs.note) if part)
            marks = " ".join(sorted(reasons.mark(reason) for reason in p.reasons))
            cells = [str(p.mine), f"{'~' * (p.theirs.tolerance > 0)}{p.published:.2f}{_spread(p)}"]
            cells += [f"{p.difference:+.1f}", f"[{sources.mark(said)}]", marks]
            method += "*" * p.ours.oracle
            lines.append([_where(p.ours), method, "all" if shots is None else str(shots), p.number, *cells])
        notes = [f"source {line}" for line in sources.lines()]
        stars = [ORACLE] if any(line[1].endswith("*") for line in lines) else []
        made.append((f"{key[0]} with {key[1]}, against published", lines, notes + reasons.lines() + stars))
    return made


def _where(ours: Ours) -> str:
    """The dataset, and of a stream in how many stages, of domains over how many pairs."""
    if ours.key[0] == DOMAIN:
        return f"{ours.dataset} ({len(ours.parts)} pair{'s' * (len(ours.parts) != 1)})"
    if ours.config["task"].get("joint"):
        return f"{ours.dataset} (joint)"
    stages = sorted({p["stages"] for p in ours.protocols if "stages" in p})
    return ours.dataset + (f" ({'-'.join(map(str, stages))} stages)" if stages else "")


def _spread(pair: Pair) -> str:
    spread = pair.theirs.spread.get(pair.number)
    return "" if spread is None else f"±{spread:.2f}"


def without(alone: Sequence[Ours]) -> str:
    """One sentence on what has no counterpart; empty where everything has."""
    told = dict.fromkeys(f"{o.key[1]} ({o.key[0]} on {o.dataset})" for o in alone)
    return f"nothing published for: {', '.join(told)}" if told else ""


def show(pairs: Sequence[Pair], alone: Sequence[Ours], out: Console) -> None:
    """The comparison on the terminal; says so where there is nothing to compare."""
    for title, lines, notes in blocks(pairs):
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
        for name in HEAD:
            left = name in ("dataset", "method", "number", "not comparable")
            table.add_column(name, justify="left" if left else "right", no_wrap=True)
        for line in lines:
            table.add_row(*(cell.replace("[", r"\[") for cell in line))
        whole(table, out)
        for note in notes:
            out.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)
        out.print()
    good = sum(not p.reasons for p in pairs)
    if pairs:
        out.print(f"{len(pairs)} numbers have a published counterpart, {good} of them comparable", highlight=False)
        out.print(UNITS, style="dim", soft_wrap=True)
    if alone:
        out.print(without(alone), style="dim", markup=False, soft_wrap=True)
    if not pairs and not alone:
        out.print("no finished runs here yet, so there is nothing to compare")


def render(pairs: Sequence[Pair], alone: Sequence[Ours], form: str) -> str:
    """As "markdown", "csv" or "json"; without a line where nothing has a counterpart."""
    if form == "markdown":
        parts = []
        for title, lines, notes in blocks(pairs):
            rule = ["---" if name in ("dataset", "method", "number", "not comparable") else "---:" for name in HEAD]
            table = "\n".join(f"| {' | '.join(line)} |" for line in [HEAD, rule, *lines])
            parts.append(f"**{title}** ({UNITS})\n\n{table}\n\n" + "\n".join(f"- {note}" for note in notes))
        return "\n\n".join([*parts, *([without(alone)] if alone else [])]) + "\n"
    flat = [pair.flat() for pair in pairs]
    if form == "json":
        return json.dumps(flat, indent=1) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]) if flat else [])
    writer.writeheader()
    writer.writerows(row | {"reasons": "; ".join(row["reasons"])} for row in flat)
    return text.getvalue()
