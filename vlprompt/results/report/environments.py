"""On what the runs of a report ran."""

import json
from collections.abc import Sequence

from vlprompt.results.report.content import ReportTable
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.formats import Table


def build_environment_table(results: Sequence[Result]) -> tuple[ReportTable, dict[str, str]]:
    """Build a table of the different environments, and return which one each run had by its folder."""
    numbers: dict[str, int] = {}
    by_folder = {}
    for result in results:
        key = json.dumps(result.environment, sort_keys=True)
        by_folder[str(result.folder)] = str(numbers.setdefault(key, len(numbers) + 1))
    environments = [json.loads(key) for key in numbers]
    names = list(dict.fromkeys(name for result in results for name in result.environment))
    counts = [sum(number == str(i) for number in by_folder.values()) for i in range(1, len(environments) + 1)]
    cells = [
        [str(i), str(count), *(_format(environment.get(name)) for name in names)]
        for i, (count, environment) in enumerate(zip(counts, environments, strict=True), 1)
    ]
    header = ["environment", "runs", *(name.replace("_", " ") for name in names)]
    table = Table("Environments", header, cells, left_columns=tuple(header[2:]))
    return ReportTable("environments", table), by_folder


def _format(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
