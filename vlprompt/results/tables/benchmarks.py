"""Scores of a set of datasets in groups, such as VTAB-1k: accuracy per task, group means, and both means of all.

VTAB's score is the mean of the three group means; the mean of the 19 tasks is another number, and both are named so
that nobody mixes them.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlprompt.results.run_folder import Result
from vlprompt.results.tables.formats import Table, escape_latex, is_for_programs, render_records, render_tables
from vlprompt.results.tables.summary import MeanStd, SeedValues, average_over_tasks, flatten_stats, format_range
from vlprompt.runtime.errors import suggest_nearest

DatasetGroups = Mapping[str, Sequence[str]]  # group -> datasets
VTAB_TASK = "vtab"
BENCHMARK_UNITS = (
    "percent, mean±standard deviation over n seeds; trained %: of the backbone's parameters; s: seconds a run, "
    "MB: peak memory, stored: bytes a task"
)
BENCHMARK_COST_COLUMNS = ["n", "trained %", "s", "MB", "stored"]


@dataclass(frozen=True)
class BenchmarkScore:
    """One method over the tasks of a set of datasets.

    Args:
        task_accuracies: of the tasks with runs of one setting.
        group_means: None for a group that lacks a task.
        mean_of_group_means: the set's score; None if a task is missing.
        mean_of_tasks: None if a task is missing.
        missing_tasks: by group.
        ambiguous_tasks: with runs of several settings, which are not counted.
        seed_counts: the numbers of seeds of the tasks, sorted.
        cost: means over runs, the peak memory a maximum; None where a run does not report it.
    """

    benchmark: str
    method: str
    backbone: str
    variant: str
    task_accuracies: dict[str, MeanStd]
    group_means: dict[str, MeanStd | None]
    mean_of_group_means: MeanStd | None
    mean_of_tasks: MeanStd | None
    missing_tasks: dict[str, list[str]]
    ambiguous_tasks: list[str]
    seed_counts: tuple[int, ...]
    cost: dict[str, float | None]

    @property
    def label(self) -> str:
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def n_tasks(self) -> int:
        return len(self.task_accuracies) + sum(map(len, self.missing_tasks.values())) + len(self.ambiguous_tasks)

    def to_flat_dict(self) -> dict[str, Any]:
        """Flatten to one level, for CSV and JSON."""
        stats = {**self.task_accuracies, **{f"mean_{group}": mean for group, mean in self.group_means.items()}}
        stats |= {"mean_of_group_means": self.mean_of_group_means, f"mean_of_{self.n_tasks}_tasks": self.mean_of_tasks}
        names = {k: getattr(self, k) for k in ("benchmark", "method", "backbone", "variant")}
        gaps = {
            "missing": " ".join(task for tasks in self.missing_tasks.values() for task in tasks),
            "several_settings": " ".join(self.ambiguous_tasks),
            "n": "-".join(map(str, self.seed_counts)),
        }
        return names | flatten_stats(stats) | gaps | self.cost


def _get_dataset_name(result: Result) -> str:
    return Path(str(result.config["task"].get("dataset"))).name


def _is_final_run(result: Result) -> bool:
    task = result.config["task"]
    return task["name"] == VTAB_TASK and task.get("phase") == "final"


def collect_final_datasets(results: Sequence[Result]) -> set[str]:
    """Return the datasets that runs of the task vtab were tested on."""
    return {_get_dataset_name(r) for r in results if _is_final_run(r)}


def score_benchmark(results: Sequence[Result], benchmark: str, groups: DatasetGroups) -> list[BenchmarkScore]:
    """Score each method and backbone by the final runs of the task vtab on the datasets of a set.

    Learning rate, weight decay and other searched settings may differ from task to task. Where a task has runs of
    several settings, they are labelled by an argument that does so on all tasks.
    """
    datasets = {dataset for group in groups.values() for dataset in group}
    families: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if _is_final_run(result) and _get_dataset_name(result) in datasets:
            families.setdefault((result.config["method"]["name"], result.config["backbone"]), []).append(result)
    return [
        _score_method(benchmark, groups, method, backbone, variant, runs)
        for (method, backbone), family in sorted(families.items())
        for variant, runs in _split_by_setting(family).items()
    ]


def _collect_settings(result: Result) -> dict[str, str]:
    """Return every setting in which two runs on one dataset may differ, as JSON."""
    settings = {f"{s}.{k}": v for s in ("method", "task", "train") for k, v in result.config[s].items()}
    settings |= {f"preprocess.{k}": v for k, v in (result.config.get("preprocess") or {}).items()}
    settings["images.test"] = result.protocol.get("test")
    return {k: json.dumps(v) for k, v in settings.items() if k not in ("task.seed", "task.dataset")}


def _has_one_setting_per_dataset(runs: Sequence[Result]) -> bool:
    settings = {(_get_dataset_name(r), str(_collect_settings(r))) for r in runs}
    return len(settings) == len({_get_dataset_name(r) for r in runs})


def _split_by_setting(runs: list[Result]) -> dict[str, list[Result]]:
    """Split by the one argument with the fewest values that leaves one setting per dataset, if there is one."""
    if _has_one_setting_per_dataset(runs):
        return {"": runs}
    best: dict[str, list[Result]] = {}
    keys = {k for r in runs for k in _collect_settings(r)} - {"train.lr", "train.weight_decay", "images.test"}
    for key in sorted(keys):
        split: dict[str, list[Result]] = {}
        for r in runs:
            split.setdefault(f"{key.partition('.')[2]}={_collect_settings(r).get(key, '')}", []).append(r)
        if all(map(_has_one_setting_per_dataset, split.values())) and (not best or len(split) < len(best)):
            best = split
    return best or {"": runs}


def _score_method(
    benchmark: str, groups: DatasetGroups, method: str, backbone: str, variant: str, runs: list[Result]
) -> BenchmarkScore:
    by_task: dict[str, list[Result]] = {}
    for r in runs:
        by_task.setdefault(_get_dataset_name(r), []).append(r)
    ambiguous = [task for task, task_runs in by_task.items() if not _has_one_setting_per_dataset(task_runs)]
    seeds = {
        task: {r.config["seed"]: r.summary["accuracy"] for r in task_runs}
        for task, task_runs in by_task.items()
        if task not in ambiguous
    }
    by_group = {group: [seeds.get(task) for task in tasks] for group, tasks in groups.items()}
    accuracies = {task: average_over_tasks([seeds.get(task)]) for tasks in groups.values() for task in tasks}
    missing = {group: [task for task in tasks if task not in by_task] for group, tasks in groups.items()}
    averaged = "trained_percent", "trained_parameters", "seconds", "stored_bytes"
    return BenchmarkScore(
        benchmark,
        method,
        backbone,
        variant,
        task_accuracies={task: accuracy for task, accuracy in accuracies.items() if accuracy is not None},
        group_means={group: average_over_tasks(values) for group, values in by_group.items()},
        mean_of_group_means=_average_group_means([*by_group.values()]),
        mean_of_tasks=average_over_tasks([values for group in by_group.values() for values in group]),
        missing_tasks={group: tasks for group, tasks in missing.items() if tasks},
        ambiguous_tasks=ambiguous,
        seed_counts=tuple(sorted({len(values) for values in seeds.values()})),
        cost={
            **{key: _average_cost(runs, key) for key in averaged},
            "peak_memory_mb": max(r.cost["peak_memory_mb"] for r in runs),
        },
    )


def _average_cost(runs: Sequence[Result], key: str) -> float | None:
    """Average a cost over runs; None if a run does not report it."""
    values = [r.cost.get(key) for r in runs]
    return None if None in values else statistics.fmean(v for v in values if v is not None)


def _average_group_means(groups: Sequence[Sequence[SeedValues | None]]) -> MeanStd | None:
    tasks = [values for group in groups for values in group]
    if not all(tasks):
        return None
    if len({frozenset(values) for values in tasks if values}) > 1:
        means = [mean.mean for group in groups if (mean := average_over_tasks(group)) is not None]
        return MeanStd(statistics.fmean(means), 0.0, 1)
    seeds = next(values for values in tasks if values)
    by_group = [{s: statistics.fmean(values[s] for values in group if values) for s in seeds} for group in groups]
    return average_over_tasks(by_group)


def build_benchmark_tables(scores: Sequence[BenchmarkScore], benchmark: str, groups: DatasetGroups) -> list[Table]:
    """Build the table of group means and costs, then one table per group with its tasks."""
    has_one_backbone = len({s.backbone for s in scores}) == 1
    labels = [s.label if has_one_backbone else f"{s.label} on {s.backbone}" for s in scores]
    n_tasks = sum(map(len, groups.values()))
    header = ["method", *groups, "mean of group means", f"mean of {n_tasks} tasks", *BENCHMARK_COST_COLUMNS]
    cells = []
    for label, score in zip(labels, scores, strict=True):
        means = [*score.group_means.values(), score.mean_of_group_means, score.mean_of_tasks]
        cells.append([label, *map(_format, means), *_format_benchmark_costs(score)])
    title = f"{benchmark}, {scores[0].backbone}: means of the groups"
    tables = [Table(title, header, cells, len(BENCHMARK_COST_COLUMNS))]
    for group, tasks in groups.items():
        cells = []
        for label, score in zip(labels, scores, strict=True):
            accuracies = [score.task_accuracies.get(t) for t in tasks]
            cells.append([label, *map(_format, [*accuracies, score.group_means[group]])])
        header = ["method", *(t.removeprefix(f"{benchmark}_") for t in tasks), "mean"]
        tables.append(Table(f"{benchmark}: {group}", header, cells))
    return tables


def _format(value: MeanStd | None) -> str:
    return "" if value is None else str(value)


def _format_benchmark_costs(score: BenchmarkScore) -> list[str]:
    names = "trained_percent", "seconds", "peak_memory_mb", "stored_bytes"
    percent, seconds, memory, stored = (score.cost[name] for name in names)
    percent_cell = "" if percent is None else f"{percent:.2f}"
    stored_cell = "" if stored is None else f"{stored:,.0f}"
    return [format_range(score.seed_counts), percent_cell, f"{seconds:.1f}", f"{memory:.0f}", stored_cell]


def explain_missing_means(scores: Sequence[BenchmarkScore]) -> list[str]:
    """Say for each method which datasets keep a mean from being shown."""
    labels_by_gap: dict[str, list[str]] = {}
    for score in scores:
        for group, tasks in score.missing_tasks.items():
            labels_by_gap.setdefault(f"{group} lacks {', '.join(tasks)}", []).append(score.label)
    lines = [f"{', '.join(labels)}: {gap}" for gap, labels in labels_by_gap.items()]
    for score in scores:
        if score.ambiguous_tasks:
            reason = f"runs of several settings, or on other images, on {', '.join(score.ambiguous_tasks)}"
            lines.append(f"{score.label}: {reason}; one folder of runs per search")
    return lines


def render_benchmark(
    scores: Sequence[BenchmarkScore], benchmark: str, groups: DatasetGroups, output_format: str
) -> str:
    """Write the scores as "markdown", "latex", "csv" or "json"."""
    if is_for_programs(output_format):
        return render_records([score.to_flat_dict() for score in scores], output_format)
    text = render_tables(build_benchmark_tables(scores, benchmark, groups), BENCHMARK_UNITS, output_format)
    lines = explain_missing_means(scores)
    return text + "".join(f"\n{escape_latex(line) if output_format == 'latex' else line}\n" for line in lines)


def score_benchmarks(results: Sequence[Result], benchmark: str | None = None) -> dict[str, list[BenchmarkScore]]:
    """Score sets of datasets.

    Args:
        results: finished runs.
        benchmark: the name of a set; without it all sets, if they cover every dataset of the runs of the task vtab.

    Returns:
        The scores by the name of the set.

    Raises:
        ValueError: if there is no set of that name, or no run of it.
    """
    from vlprompt.data.dataset_groups import read_benchmarks

    benchmarks = read_benchmarks()
    if benchmark is not None and benchmark not in benchmarks:
        nearest = suggest_nearest(benchmark, benchmarks)
        raise ValueError(f"--benchmark: expected a set of datasets, got {benchmark!r}; {nearest}")
    names = benchmarks if benchmark is None else [benchmark]
    scores_by_name = {name: scores for name in names if (scores := score_benchmark(results, name, benchmarks[name]))}
    if benchmark is not None and not scores_by_name:
        raise ValueError(
            f"--benchmark: expected finished runs of {benchmark}, got none. "
            f"Make them by `vlprompt search linear {benchmark}`."
        )
    if benchmark is not None:
        return scores_by_name
    scores = [score for benchmark_scores in scores_by_name.values() for score in benchmark_scores]
    covered = {task for score in scores for task in (*score.task_accuracies, *score.ambiguous_tasks)}
    return scores_by_name if covered >= collect_final_datasets(results) else {}


def render_benchmarks(scores_by_name: Mapping[str, Sequence[BenchmarkScore]], output_format: str) -> str:
    """Write the scores of a single set as "markdown", "latex", "csv" or "json"."""
    from vlprompt.data.dataset_groups import read_benchmarks

    [(name, scores)] = scores_by_name.items()
    return render_benchmark(scores, name, read_benchmarks()[name], output_format)
