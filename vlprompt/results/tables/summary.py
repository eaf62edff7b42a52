"""Tables over runs: mean and standard deviation over seeds."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlprompt.metrics import harmonic_mean
from vlprompt.results.comparability import (
    CONTINUAL,
    DOMAIN,
    Footnotes,
    collect_protocol_facts,
    describe_protocol_differences,
    describe_variants,
    get_table_key,
    make_config_key,
)
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.formats import Table, name_with_unit

MAIN_METRICS = {  # the metric that a task is judged by; of other tasks the first of the summary
    "few_shot": "accuracy",
    "base_to_new": "harmonic",
    "transfer": "average",
    "online": "accuracy",
    "open_set": "auroc_msp",
    "multi_label": "mAP",
    CONTINUAL: "accuracy",
    DOMAIN: "accuracy",
}
UNITS = (  # the deviation is divided by n, as in the field
    "percent, mean±standard deviation over n seeds; %: trained of the backbone's parameters; s: seconds a run, "
    "MB: peak memory"
)
COST_COLUMNS = ["n", "trained", "%", "s", "MB"]  # seeds, trained parameters, percent trained, seconds, peak memory
TableKey = tuple[str, str, str, int | None]  # task, dataset, kind and number of stages of a stream


@dataclass(frozen=True)
class MeanStd:
    """Mean and standard deviation (divided by n) of a metric over n seeds."""

    mean: float
    std: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}±{self.std:.1f}" if self.n > 1 else f"{self.mean:.1f}"


SeedValues = dict[int, float]  # a metric by seed


def compute_mean_std(values: Sequence[float]) -> MeanStd:
    return MeanStd(statistics.fmean(values), statistics.pstdev(values), len(values))


def average_over_tasks(tasks: Sequence[SeedValues | None]) -> MeanStd | None:
    """Average over tasks for each seed, then over seeds.

    Returns:
        None if a task has no values; a mean without a deviation if the tasks have different seeds.
    """
    by_task = [values for values in tasks if values]
    if len(by_task) < len(tasks):
        return None
    if len({frozenset(values) for values in by_task}) > 1:
        return MeanStd(statistics.fmean(statistics.fmean(values.values()) for values in by_task), 0.0, 1)
    return compute_mean_std([statistics.fmean(values[seed] for values in by_task) for seed in by_task[0]])


def is_oracle(result: Result) -> bool:
    """Whether labels of the target chose the epoch of a run, or its settings."""
    epoch, settings = result.config["train"].get("model_selection"), result.config["task"].get("criterion")
    return epoch == "oracle" or settings == "test-domain"


@dataclass(frozen=True)
class ResultRow:
    """All seeds of one configuration.

    Args:
        variant: the settings that tell apart the rows of one method.
        trained_percent: trained of the backbone's parameters; None for an older run or a backbone without parameters.
        stored_bytes: bytes of the learned state.
        kind: kind of a stream (class_incremental), or setting of domains (adapt, several sources).
        stages: number of stages of a stream.
        runs: one result per seed.
    """

    method: str
    backbone: str
    dataset: str
    task: str
    shots: int | None
    variant: str
    seeds: tuple[int, ...]
    metrics: dict[str, MeanStd]
    trained_parameters: int
    trained_percent: float | None
    stored_bytes: float | None
    seconds: float
    peak_memory_mb: float
    kind: str
    stages: int | None
    runs: tuple[Result, ...]

    @property
    def table_key(self) -> TableKey:
        """Rows of one table agree in this."""
        return self.task, self.dataset, self.kind, self.stages

    @property
    def main_metric(self) -> str:
        """The metric that it is judged by; "" for a row without metrics."""
        return MAIN_METRICS.get(self.task) or next(iter(self.metrics), "")

    @property
    def is_oracle(self) -> bool:
        """Whether labels of the target chose the epoch or the settings; such a row is always marked."""
        return any(is_oracle(r) for r in self.runs)

    def to_flat_dict(self) -> dict[str, Any]:
        """Flatten to one level, for CSV and JSON."""
        config = {k: getattr(self, k) for k in ("task", "dataset", "backbone", "method", "variant", "shots")}
        config |= {"kind": self.kind, "stages": self.stages} if self.task == CONTINUAL else {}
        costs = ("trained_parameters", "trained_percent", "stored_bytes", "seconds", "peak_memory_mb")
        return config | {"n": len(self.seeds)} | flatten_stats(self.metrics) | {k: getattr(self, k) for k in costs}


def flatten_stats(stats: Mapping[str, MeanStd | None]) -> dict[str, float | None]:
    """Return mean and deviation of each metric as `NAME` and `NAME_std`."""
    flat: dict[str, float | None] = {}
    for name, value in stats.items():
        flat |= {name: value and value.mean, f"{name}_std": value and value.std}
    return flat


def build_rows(results: Sequence[Result]) -> list[ResultRow]:
    """Build one row per configuration, over its seeds."""
    variants, groups = describe_variants(results), dict[str, list[Result]]()
    for result in results:
        groups.setdefault(make_config_key(result), []).append(result)
    rows = [
        _build_row(members, _describe_part(variants[key], part, members), results)
        for key, group in groups.items()
        for part, members in enumerate(_split_repeated_seeds(group))
    ]
    return sorted(rows, key=_get_row_sort_key)


def _split_repeated_seeds(runs: Sequence[Result]) -> list[list[Result]]:
    """Divide runs of one configuration so that no row has a seed twice, as runs on changed training images have."""
    rows = list[dict[int, Result]]()
    for run in runs:
        seed = run.config["seed"]
        row = next((row for row in rows if seed not in row), None)
        if row is None:
            rows.append(row := {})
        row[seed] = run
    return [list(row.values()) for row in rows]


def _describe_part(variant: str, part: int, runs: Sequence[Result]) -> str:
    """Add to a variant which training data a second row of one configuration has."""
    content = runs[0].protocol.get("contents", {}).get("train", {}).get("hash", "")
    return ", ".join(filter(None, (variant, f"on other data {content[:8]}".strip()))) if part else variant


def _build_row(runs: Sequence[Result], variant: str, results: Sequence[Result]) -> ResultRow:
    config, cost = runs[0].config, runs[0].cost
    task, dataset, kind, stages = get_table_key(runs[0], results)
    return ResultRow(
        method=config["method"]["name"],
        backbone=config["backbone"],
        dataset=dataset,
        task=task,
        shots=config["task"].get("shots"),
        variant=variant,
        seeds=tuple(sorted(r.config["seed"] for r in runs)),
        metrics=_summarize_metrics(runs),
        trained_parameters=int(cost["trained_parameters"]),
        trained_percent=cost.get("trained_percent"),
        stored_bytes=cost.get("stored_bytes"),
        seconds=statistics.fmean(r.cost["seconds"] for r in runs),
        peak_memory_mb=statistics.fmean(r.cost["peak_memory_mb"] for r in runs),
        kind=kind,
        stages=stages,
        runs=tuple(sorted(runs, key=lambda r: r.config["seed"])),
    )


def _summarize_metrics(runs: Sequence[Result]) -> dict[str, MeanStd]:
    """Return each metric over seeds; the harmonic mean is that of the mean base and the mean new accuracy."""
    names = merge_in_order([list(r.summary) for r in runs])
    metrics = {name: compute_mean_std([r.summary[name] for r in runs if name in r.summary]) for name in names}
    if {"base", "new", "harmonic"} <= set(metrics):
        mean = harmonic_mean(metrics["base"].mean, metrics["new"].mean)
        metrics["harmonic"] = MeanStd(mean, metrics["harmonic"].std, metrics["harmonic"].n)
    return metrics


def _get_row_sort_key(row: ResultRow) -> tuple[Any, ...]:
    """Zero-shot comes first in each table."""
    rank = -1 if row.method == "zero_shot" else 0
    table = row.task, row.dataset, row.kind, row.stages or 0
    return *table, rank, row.backbone, row.method, row.variant, row.shots or 0


def group_by_table(rows: Iterable[ResultRow]) -> list[list[ResultRow]]:
    groups: dict[TableKey, list[ResultRow]] = {}
    for row in rows:
        groups.setdefault(row.table_key, []).append(row)
    return list(groups.values())


def find_usual_backbone(rows: Sequence[ResultRow]) -> str:
    return Counter(r.backbone for r in rows).most_common(1)[0][0]


def merge_in_order(lists: Sequence[list[str]]) -> list[str]:
    """Merge lists of names; a name that is in one list only stands behind the name that it follows there."""
    merged = list[str]()
    for names in lists:
        index = 0
        for name in names:
            if name not in merged:
                merged.insert(index, name)
            index = merged.index(name) + 1
    return merged


def build_task_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """Build one table per task and dataset, and per kind and length of a stream."""
    return [_build_task_table(table_rows) for table_rows in group_by_table(rows)]


def _build_task_table(rows: Sequence[ResultRow]) -> Table:
    """Use the metrics as columns, or the shots where there are several and accuracy is the only metric."""
    metrics, shots = merge_in_order([list(r.metrics) for r in rows]), _collect_shots(rows)
    task, is_continual = rows[0].task, rows[0].task == CONTINUAL
    usual_backbone, main = find_usual_backbone(rows), MAIN_METRICS.get(task, metrics[0])
    letters, notes = mark_protocols(rows)
    protocol = ["protocol"] if notes else []
    if main == "accuracy" and len(shots) > 1 and not is_continual:
        title = f"{task} on {rows[0].dataset}, {usual_backbone}: {main}"
        header = ["method", *protocol, *map(_format_shots, shots), *COST_COLUMNS]
        cells = _format_rows_by_shots(rows, shots, letters if notes else None)
        return Table(title, header, cells, len(COST_COLUMNS), 0, tuple(notes))
    shots_column = [] if is_continual and shots == [None] else ["shots"]  # a stream usually has all images
    cells = []
    for row in _sort_by_label(rows, usual_backbone):
        lead = [format_label(row, usual_backbone), *([letters[id(row)]] if notes else [])]
        lead += [str(row.shots or "all")] if shots_column else []
        cells.append([*lead, *(_format_metric(row, name) for name in metrics), *format_cost_cells([row])])
    header = [
        "method",
        *protocol,
        *shots_column,
        *(name_with_unit(name).replace("_", " ") for name in metrics),
        *COST_COLUMNS,
    ]
    title, n_optional = _format_title(rows[0], usual_backbone), len(metrics) - 1 if is_continual else 0
    return Table(title, header, cells, len(COST_COLUMNS), n_optional, tuple(notes))


def _format_rows_by_shots(
    rows: Sequence[ResultRow], shots: Sequence[int | None], letters: dict[int, str] | None
) -> list[list[str]]:
    usual_backbone, cells = find_usual_backbone(rows), []
    for label in dict.fromkeys(format_label(r, usual_backbone) for r in rows):
        by_shots = {r.shots: r for r in rows if format_label(r, usual_backbone) == label}
        lead = [label]
        if letters is not None:
            lead.append(" ".join(dict.fromkeys(letters[id(r)] for r in by_shots.values() if letters[id(r)])))
        numbers = [_format_metric(by_shots[k], "accuracy") if k in by_shots else "" for k in shots]
        cells.append([*lead, *numbers, *format_cost_cells([*by_shots.values()])])
    return cells


def _sort_by_label(rows: Sequence[ResultRow], usual_backbone: str) -> list[ResultRow]:
    """Put rows of one label together, one for each number of shots."""
    by_label: dict[str, dict[int | None, ResultRow]] = {}
    for row in rows:
        by_label.setdefault(format_label(row, usual_backbone), {})[row.shots] = row
    return [row for by_shots in by_label.values() for row in by_shots.values()]


def _format_title(row: ResultRow, usual_backbone: str) -> str:
    title = f"{row.task} on {row.dataset}, "
    if row.task == CONTINUAL:
        title += f"{row.kind.replace('_', '-')}, "
        title += "" if row.stages is None else f"{row.stages} stage{'s' * (row.stages != 1)}, "
    return title + usual_backbone


def mark_protocols(rows: Sequence[ResultRow]) -> tuple[dict[int, str], list[str]]:
    """Return footnote letters for rows whose protocol differs from the majority, or whose data have changed since.

    Returns:
        The letter by the row's id, empty for the majority, and the footnotes.
    """
    notes = Footnotes(uses_letters=True)
    differences = describe_protocol_differences([collect_protocol_facts(r.runs) for r in rows])
    texts = ["; ".join(filter(None, (d, _describe_changes(r)))) for d, r in zip(differences, rows, strict=True)]
    return {id(r): notes.add(text) if text else "" for r, text in zip(rows, texts, strict=True)}, notes.format_lines()


def _describe_changes(row: ResultRow) -> str:
    changes = list(dict.fromkeys(change for r in row.runs for change in r.protocol.get("changed_since", [])))
    return f"the data have changed since: {'; '.join(changes[:2])}{' ...' * (len(changes) > 2)}" if changes else ""


def _collect_shots(rows: Sequence[ResultRow]) -> list[int | None]:
    """Sort the numbers of shots; None, which is all images, comes last."""
    return sorted({r.shots for r in rows}, key=lambda shots: float("inf") if shots is None else shots)


def _format_shots(shots: int | None) -> str:
    return "all" if shots is None else f"{shots} shot{'s' * (shots != 1)}"


def _format_metric(row: ResultRow, name: str) -> str:
    return str(row.metrics[name]) if name in row.metrics else ""


def format_label(row: ResultRow, usual_backbone: str) -> str:
    """Name a row in tables and plots: method, backbone where it is not the usual one, variant, and * for an oracle."""
    name = row.method if row.backbone == usual_backbone else f"{row.method} on {row.backbone}"
    return name + (f" ({row.variant})" if row.variant else "") + "*" * row.is_oracle


def format_cost_cells(rows: Sequence[ResultRow]) -> list[str]:
    """Format the cells under COST_COLUMNS; of several rows the longest run and the highest peak."""
    seconds, memory = max(r.seconds for r in rows), max(r.peak_memory_mb for r in rows)
    largest = max(rows, key=lambda r: r.trained_parameters)
    percent = _format_percent(largest.trained_percent)
    n = format_range(sorted({len(r.seeds) for r in rows}))
    return [n, f"{largest.trained_parameters:,}", percent, f"{seconds:.1f}", f"{memory:.0f}"]


def format_range(values: Sequence[int]) -> str:
    """Format sorted numbers as "3", or as "1-3"; nothing for none."""
    return f"{values[0]}-{values[-1]}" if len(values) > 1 else "".join(map(str, values))


def _format_percent(percent: float | None) -> str:
    if percent is None:
        return ""
    return f"{percent:.2g}" if percent < 1 else f"{percent:.1f}"
