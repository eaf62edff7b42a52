"""Benchmarks of several datasets: VTAB-1k in its three groups, FGVC; the score is the mean of group means."""

from vlprompt.data.cards import list_cards
from vlprompt.runtime.errors import suggest_nearest
from vlprompt.runtime.paths import find_configs_folder


def read_benchmarks() -> dict[str, dict[str, list[str]]]:
    """Return {benchmark: {group: datasets}} as configs/groups.yaml has them.

    Raises:
        ValueError: for another structure, a dataset without a card and one that stands twice in a benchmark.
    """
    from vlprompt.data.card_schema import Benchmark
    from vlprompt.data.validation import load_yaml_mapping, validate

    path = find_configs_folder() / "groups.yaml"
    known, benchmarks = list_cards(), dict[str, dict[str, list[str]]]()
    for name, groups in load_yaml_mapping(path, "{benchmark: {group: [dataset, ...]}}").items():
        benchmark = validate(Benchmark, {"groups": groups}, f"{path}: {name}")
        datasets = benchmark.list_datasets()
        if unknown := [dataset for dataset in datasets if dataset not in known]:
            raise ValueError(
                f"{path}: {name}: expected datasets with a card, got {unknown[0]!r}; "
                f"{suggest_nearest(unknown[0], known)}"
            )
        if repeated := [dataset for dataset in datasets if datasets.count(dataset) > 1]:
            raise ValueError(f"{path}: {name}: expected each dataset once, got {repeated[0]!r} twice. Remove one.")
        benchmarks[str(name)] = benchmark.groups
    return benchmarks


def list_benchmark_datasets(name: str) -> list[str] | None:
    """Return the datasets of a benchmark, group after group; None for a name that is no benchmark."""
    groups = read_benchmarks().get(name)
    return None if groups is None else [dataset for group in groups.values() for dataset in group]
