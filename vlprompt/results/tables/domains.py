"""Tables of the task domain: accuracy of each pair of domains, means over the pairs, and the epoch of each rule.

A row whose epoch or settings were chosen by the target's labels (an oracle) has a star in every table.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlprompt.engine.model_selection import SELECTION_DESCRIPTIONS
from vlprompt.results.comparability import (
    DOMAIN,
    Footnotes,
    collect_protocol_facts,
    describe_protocol_differences,
    get_domain_pair,
)
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.formats import Table
from vlprompt.results.tables.summary import (
    COST_COLUMNS,
    MeanStd,
    ResultRow,
    average_over_tasks,
    find_usual_backbone,
    flatten_stats,
    format_cost_cells,
    format_label,
    merge_in_order,
)
from vlprompt.tasks.domain import UNKNOWN_TARGET_METRICS

DomainPair = tuple[tuple[str, ...], str]  # sources, target
Getter = Callable[[Result], float | None]
MEAN_METRICS = (
    "accuracy",
    "class_mean",
    "source",
    "zero_shot",
    "gain",
    "coverage",
    "precision",
    *UNKNOWN_TARGET_METRICS,
)
PAIR_METRICS = {"accuracy": "accuracy on the target's test", "h_score": "H-score on the target's test"}
SELECTION_RULES = tuple(SELECTION_DESCRIPTIONS)
ORACLE_NOTE = (
    "*: an oracle, which looks at the target's labels to choose the epoch or the settings: a bound, and no result"
)


@dataclass(frozen=True)
class MethodResults:
    """All pairs and seeds of one method and setting."""

    name: str
    rows_by_pair: dict[DomainPair, ResultRow]

    @property
    def first_row(self) -> ResultRow:
        return next(iter(self.rows_by_pair.values()))

    def has_value(self, get_value: Getter) -> bool:
        return any(get_value(r) is not None for row in self.rows_by_pair.values() for r in row.runs)

    def mean(self, pairs: Sequence[DomainPair], get_value: Getter) -> MeanStd | None:
        """Average over the pairs for each seed, then over seeds; None if a pair or a value of it is missing."""
        return average_over_tasks([self._collect_seed_values(p, get_value) for p in pairs])

    def _collect_seed_values(self, pair: DomainPair, get_value: Getter) -> dict[int, float] | None:
        values: dict[int, float] = {}
        for result in self.rows_by_pair[pair].runs if pair in self.rows_by_pair else ():
            if (value := get_value(result)) is None:
                return None
            values[result.config["seed"]] = value
        return values


def build_domain_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """Build the tables of one setting: accuracy by pair if there are several, means over pairs, epochs of the rules."""
    return _DomainTables(rows).build()


class _DomainTables:
    """What the tables of one setting share: methods, pairs, the first columns and the footnotes."""

    def __init__(self, rows: Sequence[ResultRow]):
        self.methods, self.pairs = group_by_method(rows), collect_pairs(rows)
        self.labels, self.legend = abbreviate_pairs(self.pairs)
        letters, self.notes = mark_method_protocols(self.methods, self.labels)
        self.lead = {id(m): [m.name, *([letters[id(m)]] if self.notes else [])] for m in self.methods}
        self.header = ["method", *(["protocol"] if self.notes else [])]
        self.gaps = describe_missing_pairs(self.methods, self.pairs, self.labels)
        self.oracle = [ORACLE_NOTE] if any(m.first_row.is_oracle for m in self.methods) else []
        self.title = self._format_title(rows)

    def _format_title(self, rows: Sequence[ResultRow]) -> str:
        title = f"{DOMAIN} on {rows[0].dataset}, {rows[0].kind.replace('_', '-')}"
        first_pair = self.labels[self.pairs[0]]
        title += f", {first_pair}" if len(self.pairs) == 1 and first_pair != rows[0].dataset else ""
        return f"{title}, {find_usual_backbone(rows)}: "

    def build(self) -> list[Table]:
        by_pair = [k for k in PAIR_METRICS if any(m.has_value(_make_summary_getter(k)) for m in self.methods)]
        tables = [self._build_pair_table(name) for name in by_pair] if len(self.pairs) > 1 else []
        tables.append(self._build_mean_table())
        rules = [k for k in SELECTION_RULES if any(m.has_value(_make_rule_getter(k)) for m in self.methods)]
        return [*tables, self._build_rule_table(rules)] if rules else tables

    def _build_pair_table(self, metric: str) -> Table:
        cells = []
        for m in self.methods:
            values = [m.rows_by_pair[p].metrics.get(metric) if p in m.rows_by_pair else None for p in self.pairs]
            mean = self._format_mean(m, _make_summary_getter(metric))
            cells.append([*self.lead[id(m)], *map(_format, values), mean])
        legend = [f"domains: {self.legend}"] if self.legend else []
        legend.append(f"mean: over the {len(self.pairs)} pairs for each seed, then over seeds")
        header = [*self.header, *(self.labels[p] for p in self.pairs), "mean"]
        notes = (*self.notes, *legend, *self.oracle, *self.gaps)
        return Table(self.title + PAIR_METRICS[metric], header, cells, footnotes=notes)

    def _build_mean_table(self) -> Table:
        metrics = [k for k in MEAN_METRICS if any(m.has_value(_make_summary_getter(k)) for m in self.methods)]
        cells = []
        for m in self.methods:
            numbers = [self._format_mean(m, _make_summary_getter(k)) for k in metrics]
            cells.append([*self.lead[id(m)], *numbers, *format_cost_cells([*m.rows_by_pair.values()])])
        header = [*self.header, *(k.replace("_", " ") for k in metrics), *COST_COLUMNS]
        title = f"means over {len(self.pairs)} pairs" if len(self.pairs) > 1 else "numbers of the target"
        notes = (*self.notes, *self.oracle, *self.gaps)
        return Table(self.title + title, header, cells, len(COST_COLUMNS), len(metrics) - 1, notes)

    def _build_rule_table(self, rules: Sequence[str]) -> Table:
        methods = [m for m in self.methods if any(m.has_value(_make_rule_getter(k)) for k in rules)]
        cells = [[*self.lead[id(m)], *(self._format_mean(m, _make_rule_getter(k)) for k in rules)] for m in methods]
        header = [*self.header, *(k + "*" * (k == "oracle") for k in rules)]
        notes = (*self.notes, *([ORACLE_NOTE] if "oracle" in rules else self.oracle), *self.gaps)
        title = "which epoch each rule would keep, accuracy on the target's test"
        return Table(self.title + title, header, cells, footnotes=notes)

    def _format_mean(self, method: MethodResults, get_value: Getter) -> str:
        return _format(method.mean(self.pairs, get_value))


def _format(value: MeanStd | None) -> str:
    return "" if value is None else str(value)


def _make_summary_getter(name: str) -> Getter:
    return lambda result: result.summary.get(name)


def _make_rule_getter(name: str) -> Getter:
    return lambda result: result.scores[-1].get("rules", {}).get(name)


def group_by_method(rows: Sequence[ResultRow]) -> list[MethodResults]:
    """Join the pairs of one method and setting, in the order of the rows of one table."""
    methods, usual_backbone = list[MethodResults](), find_usual_backbone(rows)
    for row in rows:
        name, pair = format_label(row, usual_backbone), get_domain_pair(row.runs[0])
        settings = _collect_shared_settings(row)
        method = next(
            (
                m
                for m in methods
                if m.name == name and _collect_shared_settings(m.first_row) == settings and pair not in m.rows_by_pair
            ),
            None,
        )
        if method is None:
            methods.append(method := MethodResults(name, {}))
        method.rows_by_pair[pair] = row
    return [
        replace(m, name=_disambiguate_name(m, [other.first_row for other in methods if other.name == m.name]))
        for m in methods
    ]


def _collect_shared_settings(row: ResultRow) -> dict[str, str]:
    """Return the settings that runs on other pairs and seeds share, as JSON."""
    config, own_keys = row.runs[0].config, ("task.dataset", "task.source", "task.target", "task.seed")
    settings = {f"{s}.{k}": v for s in ("method", "task", "train") for k, v in config[s].items()}
    return {k: json.dumps(v) for k, v in settings.items() if k not in own_keys}


def _disambiguate_name(method: MethodResults, namesakes: Sequence[ResultRow]) -> str:
    """Add the settings in which others of the same name differ, so that no mean mixes them."""
    settings, others = _collect_shared_settings(method.first_row), [_collect_shared_settings(r) for r in namesakes]
    differing = [k for k in settings if len({other.get(k) for other in others}) > 1]
    suffix = ", ".join(f"{k.partition('.')[2]}={settings[k]}" for k in differing)
    return method.name + (f" ({suffix})" if differing else "")


def collect_pairs(rows: Sequence[ResultRow]) -> list[DomainPair]:
    """Sort the pairs of a table by source if there is one, then by target."""
    pairs = {get_domain_pair(row.runs[0]) for row in rows}
    return sorted(pairs, key=lambda p: (p[0] if len(p[0]) == 1 else (), p[1], p[0]))


def abbreviate_pairs(pairs: Sequence[DomainPair]) -> tuple[dict[DomainPair, str], str]:
    """Return a short label for each pair, and a legend for its letters, empty if the names are not abbreviated.

    The label is the target only where no pair has a single source and every pair has another target.
    """
    if len({target for _, target in pairs}) == len(pairs) and all(len(sources) != 1 for sources, _ in pairs):
        return {p: p[1] for p in pairs}, ""
    domains = sorted({d for sources, target in pairs for d in (*sources, target)})
    letters = {d: d[:1].upper() for d in domains}
    if len(pairs) < 3 or len(set(letters.values())) < len(domains):
        letters = {d: d for d in domains}
    legend = ", ".join(f"{letters[d]} = {d}" for d in domains if letters[d] != d)
    return {(s, t): f"{'+'.join(letters[d] for d in s)} -> {letters[t]}".lstrip() for s, t in pairs}, legend


def mark_method_protocols(
    methods: Sequence[MethodResults], pair_labels: dict[DomainPair, str]
) -> tuple[dict[int, str], list[str]]:
    """Return footnote letters for methods whose protocol differs from the table's majority.

    Returns:
        The letter by the id of the MethodResults, empty for the majority; and the footnotes, which name the pairs
        where a difference does not hold for all pairs of a method.
    """
    rows = [(m, pair, row) for m in methods for pair, row in m.rows_by_pair.items()]
    texts = describe_protocol_differences([collect_protocol_facts(row.runs) for _, _, row in rows])
    notes, letters = Footnotes(uses_letters=True), dict[int, str]()
    for method in methods:
        labels_by_part: dict[str, list[str]] = {}
        for (other, pair, _), text in zip(rows, texts, strict=True):
            for part in text.split("; ") if other is method and text else []:
                labels_by_part.setdefault(part, []).append(pair_labels[pair])
        differences = [
            part + ("" if len(labels) == len(method.rows_by_pair) else f" on {', '.join(labels)}")
            for part, labels in labels_by_part.items()
        ]
        letters[id(method)] = notes.add("; ".join(differences)) if differences else ""
    return letters, notes.format_lines()


def describe_missing_pairs(
    methods: Sequence[MethodResults], pairs: Sequence[DomainPair], pair_labels: dict[DomainPair, str]
) -> list[str]:
    """Name the pairs and seeds that a method lacks and others have."""
    names_by_gap: dict[str, list[str]] = {}
    for method in methods:
        if absent := [pair_labels[p] for p in pairs if p not in method.rows_by_pair]:
            names_by_gap.setdefault(", ".join(absent), []).append(method.name)
    lines = [f"no mean for {', '.join(names)}: no finished run of {gap}" for gap, names in names_by_gap.items()]
    for method in methods:
        seeds = {seed for row in method.rows_by_pair.values() for seed in row.seeds}
        missing = {p: sorted(seeds - {*row.seeds}) for p, row in method.rows_by_pair.items() if seeds - {*row.seeds}}
        if len(method.rows_by_pair) == len(pairs) and missing:
            gaps = "; ".join(f"{pair_labels[p]} {', '.join(map(str, numbers))}" for p, numbers in missing.items())
            lines.append(f"{method.name}: a mean of unequal seeds, without a spread; lacking are {gaps}")
    return lines


def flatten_domain_rows(rows: Sequence[ResultRow], with_runs: bool) -> list[dict[str, Any]]:
    """Flatten the rows of one setting to records: every pair of a method, then the mean over its pairs.

    Args:
        rows: rows of one table.
        with_runs: add the epochs of each run.
    """
    methods, pairs = group_by_method(rows), collect_pairs(rows)
    labels = {p: f"{'+'.join(p[0])} -> {p[1]}".lstrip() for p in pairs}
    letters, notes = mark_method_protocols(methods, labels)
    differences, records = dict(note.split(": ", 1) for note in notes), list[dict[str, Any]]()
    for method in methods:
        letter, shared = letters[id(method)], {"setting": rows[0].kind, "is_oracle": method.first_row.is_oracle}
        protocol = {"protocol": letter, "differs": differences.get(letter, "")} if notes else {}
        for pair in (p for p in pairs if p in method.rows_by_pair):
            row, domains = method.rows_by_pair[pair], {"source_domain": "+".join(pair[0]), "target_domain": pair[1]}
            record = row.to_flat_dict() | shared | domains | protocol | _collect_rule_means(method, [pair])
            records.append(record | ({"runs": [_summarize_domain_run(r) for r in row.runs]} if with_runs else {}))
        if len(pairs) > 1:
            missing = "; ".join(labels[p] for p in pairs if p not in method.rows_by_pair)
            domains = {"source_domain": "mean", "target_domain": "mean", "missing": missing}
            mean = _flatten_mean(method, pairs) | shared | protocol | domains
            records.append(mean | _collect_rule_means(method, pairs))
    return records


def _flatten_mean(method: MethodResults, pairs: Sequence[DomainPair]) -> dict[str, Any]:
    metrics = merge_in_order([list(row.metrics) for row in method.rows_by_pair.values()])
    seed_counts = {len(row.seeds) for row in method.rows_by_pair.values()}
    record = method.first_row.to_flat_dict() | dict.fromkeys(("seconds", "peak_memory_mb", "stored_bytes"))
    record |= {"n": seed_counts.pop() if len(seed_counts) == 1 else None}
    return record | flatten_stats({k: method.mean(pairs, _make_summary_getter(k)) for k in metrics})


def _collect_rule_means(method: MethodResults, pairs: Sequence[DomainPair]) -> dict[str, float | None]:
    means = {f"rule_{k}": method.mean(pairs, _make_rule_getter(k)) for k in SELECTION_RULES}
    return flatten_stats({k: mean for k, mean in means.items() if mean is not None})


def _summarize_domain_run(result: Result) -> dict[str, Any]:
    epochs = result.stages[-1].get("epochs", []) if result.stages else []
    return {"seed": result.config["seed"], "epochs": epochs, "rules": result.scores[-1].get("rules", {})}
