"""Tables of the task domain: each pair of domains, means over the pairs, and which epoch each rule would keep.

A row whose epoch the target's test labels chose (an oracle) has a star in every one of them.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlprompt.engine.model_selection import SELECTION
from vlprompt.results.comparability import DOMAIN, Notes, differing, facts, pair
from vlprompt.results.run_folder import Result
from vlprompt.results.tables import summary
from vlprompt.results.tables.summary import COST, Cell, Grid, Row, cost_cells, flat_cells, label, mean_over, union

Pair = tuple[tuple[str, ...], str]  # sources, target
MEANS = ("accuracy", "class_mean", "source", "zero_shot", "gain", "coverage", "precision")
RULES = tuple(SELECTION)
ORACLE = "*: an oracle, which looks at the target's test labels to choose the epoch: a bound, and no result"


@dataclass(frozen=True)
class Line:
    """All pairs and seeds of one method and setting."""

    name: str
    rows: dict[Pair, Row]

    @property
    def first(self) -> Row:
        return next(iter(self.rows.values()))

    def has(self, number: Callable[[Result], float | None]) -> bool:
        return any(number(r) is not None for row in self.rows.values() for r in row.runs)

    def mean(self, pairs: Sequence[Pair], number: Callable[[Result], float | None]) -> Cell | None:
        """Over the pairs for each seed, then over seeds; None where a pair or a number of it lacks."""
        return mean_over([self._seeds(p, number) for p in pairs])

    def _seeds(self, pair: Pair, number: Callable[[Result], float | None]) -> dict[int, float] | None:
        told = {r.config["seed"]: number(r) for r in self.rows[pair].runs} if pair in self.rows else {}
        return None if None in told.values() else {seed: v for seed, v in told.items() if v is not None}


def grids(found: Sequence[Row]) -> list[Grid]:
    """Every table there is: of domains those of here, of all other tasks one per task and dataset."""
    made = []
    for key in dict.fromkeys(r.table for r in found):
        some = [r for r in found if r.table == key]
        made += _grids(some) if key[0] == DOMAIN else summary.grids(some)
    return made


def _grids(some: Sequence[Row]) -> list[Grid]:
    """Accuracy by pair where there are several, the means over the pairs, and the epochs that rules would keep."""
    found, pairs, usual = lines(some), pairs_of(some), _usual(some)
    short, meant = names(pairs)
    letters, notes = marked(found, short)
    lead = [[line.name, *([letters[id(line)]] if notes else [])] for line in found]
    head = ["method", *(["protocol"] if notes else [])]
    about = tuple(missing(found, pairs, short))
    star = (ORACLE,) if any(line.first.oracle for line in found) else ()
    title = f"{DOMAIN} on {some[0].dataset}, {some[0].kind.replace('_', '-')}"
    title += (
        f", {short[pairs[0]]}, {usual}: " if len(pairs) == 1 and short[pairs[0]] != some[0].dataset else f", {usual}: "
    )
    told = lambda cell: "" if cell is None else str(cell)  # noqa: E731
    made, several = [], f"means over {len(pairs)} pairs" if len(pairs) > 1 else "numbers of the target"
    if len(pairs) > 1:
        cells = [[*(told(line.rows[p].numbers["accuracy"] if p in line.rows else None) for p in pairs),
                  told(line.mean(pairs, _number("accuracy")))] for line in found]  # fmt: skip
        explained = [
            *([f"domains: {meant}"] if meant else []),
            f"mean: over the {len(pairs)} pairs for each seed, then over seeds",
        ]
        columns = [*head, *(short[p] for p in pairs), "mean"]
        made.append(Grid(title + "accuracy on the target's test", columns, _joined(lead, cells), 0,
                         notes=(*notes, *explained, *star, *about)))  # fmt: skip
    shown = [k for k in MEANS if any(line.has(_number(k)) for line in found)]
    cells = [[*(told(line.mean(pairs, _number(k))) for k in shown), *cost_cells([*line.rows.values()])]
             for line in found]  # fmt: skip
    columns = [*head, *(k.replace("_", " ") for k in shown), *COST]
    made.append(
        Grid(title + several, columns, _joined(lead, cells), len(COST), len(shown) - 1, (*notes, *star, *about))
    )
    rules = [k for k in RULES if any(line.has(_rule(k)) for line in found)]
    if rules:
        with_any = [line for line in found if any(line.has(_rule(k)) for k in rules)]
        cells = [[told(line.mean(pairs, _rule(k))) for k in rules] for line in with_any]
        lead = [mine for mine, line in zip(lead, found, strict=True) if line in with_any]
        columns = [*head, *(k + "*" * (k == "oracle") for k in rules)]
        star = (ORACLE,) if "oracle" in rules else star
        made.append(Grid(title + "which epoch each rule would keep, accuracy on the target's test", columns,
                         _joined(lead, cells), 0, notes=(*notes, *star, *about)))  # fmt: skip
    return made


def _joined(left: list[list[str]], right: list[list[str]]) -> list[list[str]]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _number(name: str) -> Callable[[Result], float | None]:
    return lambda result: result.summary.get(name)


def _rule(name: str) -> Callable[[Result], Any]:
    return lambda result: result.scores[-1].get("rules", {}).get(name)


def _usual(some: Sequence[Row]) -> str:
    return Counter(r.backbone for r in some).most_common(1)[0][0]


def lines(some: Sequence[Row]) -> list[Line]:
    """Rows of one table, the pairs of one method and setting side by side, in the order of the rows."""
    found, usual = list[Line](), _usual(some)
    for row in some:
        name, at = label(row, usual), pair(row.runs[0])
        like = (line for line in found if line.name == name and _setting(line.first) == _setting(row))
        line = next((line for line in like if at not in line.rows), None)
        if line is None:
            found.append(line := Line(name, {}))
        line.rows[at] = row
    return [replace(line, name=_told_apart(line, [other.first for other in found if other.name == line.name]))
            for line in found]  # fmt: skip


def _setting(row: Row) -> dict[str, str]:
    """What runs on other pairs and seeds have in common."""
    config = row.runs[0].config
    told = {f"{s}.{k}": v for s in ("method", "task", "train") for k, v in config[s].items()}
    return {
        k: json.dumps(v)
        for k, v in told.items()
        if k not in ("task.dataset", "task.source", "task.target", "task.seed")
    }


def _told_apart(line: Line, alike: Sequence[Row]) -> str:
    """The name of a line, with the settings in which others of the same name differ: no mean may mix them."""
    mine, every = _setting(line.first), [_setting(row) for row in alike]
    differ = [k for k in mine if len({told.get(k) for told in every}) > 1]
    return line.name + (f" ({', '.join(f'{k.partition(chr(46))[2]}={mine[k]}' for k in differ)})" if differ else "")


def pairs_of(some: Sequence[Row]) -> list[Pair]:
    """Every pair that any row of a table is about: by its source where it is one, then by its target."""
    return sorted({pair(row.runs[0]) for row in some}, key=lambda p: (p[0] if len(p[0]) == 1 else (), p[1], p[0]))


def names(pairs: Sequence[Pair]) -> tuple[dict[Pair, str], str]:
    """How each pair is called, and what its letters stand for; empty where they are whole names.

    Only the target where the sources are several and every target has its own, such as all the others.
    """
    if len({target for _, target in pairs}) == len(pairs) and all(len(sources) != 1 for sources, _ in pairs):
        return {p: p[1] for p in pairs}, ""
    domains = sorted({d for sources, target in pairs for d in (*sources, target)})
    letters = {d: d[:1].upper() for d in domains}
    if len(pairs) < 3 or len(set(letters.values())) < len(domains):
        letters = {d: d for d in domains}
    meant = ", ".join(f"{letters[d]} = {d}" for d in domains if letters[d] != d)
    return {(s, t): f"{'+'.join(letters[d] for d in s)} -> {letters[t]}".lstrip() for s, t in pairs}, meant


def marked(found: Sequence[Line], short: dict[Pair, str]) -> tuple[dict[int, str], list[str]]:
    """The letter of each line, by its id, whose protocol is not that of most; what the letters mean.

    What only holds for some of a line's pairs says for which.
    """
    every = [(line, at, row) for line in found for at, row in line.rows.items()]
    texts = differing([facts(row.runs) for _, _, row in every])
    notes, letters = Notes(letters=True), dict[int, str]()
    for line in found:
        parts: dict[str, list[str]] = {}
        for (other, at, _), text in zip(every, texts, strict=True):
            for part in text.split("; ") if other is line and text else []:
                parts.setdefault(part, []).append(short[at])
        told = [part + ("" if len(on) == len(line.rows) else f" on {', '.join(on)}") for part, on in parts.items()]
        letters[id(line)] = notes.mark("; ".join(told)) if told else ""
    return letters, notes.lines()


def missing(found: Sequence[Line], pairs: Sequence[Pair], short: dict[Pair, str]) -> list[str]:
    """Sentences about the pairs that a line lacks, of those that others have."""
    lack: dict[str, list[str]] = {}
    for line in found:
        if absent := [short[p] for p in pairs if p not in line.rows]:
            lack.setdefault(", ".join(absent), []).append(line.name)
    told = [f"no mean for {', '.join(of)}: no finished run of {what}" for what, of in lack.items()]
    for line in found:
        every = {seed for row in line.rows.values() for seed in row.seeds}
        short_of = [f"{short[p]} {', '.join(map(str, sorted(every - {*row.seeds})))}"
                    for p, row in line.rows.items() if every - {*row.seeds}]  # fmt: skip
        if len(line.rows) == len(pairs) and short_of:
            told.append(f"{line.name}: a mean of unequal seeds, without a spread; lacking are {'; '.join(short_of)}")
    return told


def flat(some: Sequence[Row], runs: bool) -> list[dict[str, Any]]:
    """One level for CSV and JSON: every pair of a line, then its mean over them; with each run's epochs if asked."""
    found, pairs = lines(some), pairs_of(some)
    short = {p: f"{'+'.join(p[0])} -> {p[1]}".lstrip() for p in pairs}
    letters, notes = marked(found, short)
    meant, made = dict(note.split(": ", 1) for note in notes), []
    for line in found:
        protocol = {"protocol": letters[id(line)], "differs": meant.get(letters[id(line)], "")} if notes else {}
        always = {"setting": some[0].kind, "is_oracle": line.first.oracle}
        for p in (p for p in pairs if p in line.rows):
            row = line.rows[p]
            about = always | {"source_domain": "+".join(p[0]), "target_domain": p[1]} | protocol | _rules(line, [p])
            made.append(row.flat() | about | ({"runs": [_run(r) for r in row.runs]} if runs else {}))
        if len(pairs) > 1:
            known = union([list(row.numbers) for row in line.rows.values()])
            numbers = flat_cells({k: line.mean(pairs, _number(k)) for k in known})
            seeds = {len(row.seeds) for row in line.rows.values()}
            about = line.first.flat() | dict.fromkeys(("seconds", "peak_memory_mb", "stored_bytes"))
            about |= {"n": seeds.pop() if len(seeds) == 1 else None} | numbers | always | protocol
            absent = "; ".join(short[p] for p in pairs if p not in line.rows)
            made.append(
                about | {"source_domain": "mean", "target_domain": "mean", "missing": absent} | _rules(line, pairs)
            )
    return made


def _rules(line: Line, pairs: Sequence[Pair]) -> dict[str, float | None]:
    return flat_cells({f"rule_{k}": cell for k in RULES if (cell := line.mean(pairs, _rule(k))) is not None})


def _run(result: Result) -> dict[str, Any]:
    epochs = result.stages[-1].get("epochs", []) if result.stages else []
    return {"seed": result.config["seed"], "epochs": epochs, "rules": result.scores[-1].get("rules", {})}
