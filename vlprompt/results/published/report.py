"""Tables of our results against the published ones."""

from collections.abc import Sequence

from vlprompt.results.comparability import DOMAIN, Footnotes
from vlprompt.results.published.aggregate import AggregatedResult
from vlprompt.results.published.compare import Comparison
from vlprompt.results.tables.domains import ORACLE_NOTE
from vlprompt.results.tables.formats import Table, escape_latex, is_for_programs, render_records, render_tables
from vlprompt.runtime.errors import suggest_nearest

COMPARISON_TARGETS = ("published",)
COMPARISON_HEADER = [
    "dataset",
    "method",
    "shots",
    "metric",
    "ours",
    "published",
    "difference",
    "source",
    "not comparable",
]
LEFT_COLUMNS = ("dataset", "method", "metric", "not comparable")
COMPARISON_UNITS = "percent; ours: mean±standard deviation over n seeds; difference: ours - published"


def validate_target(target: str) -> None:
    """Raise a ValueError for something that results can't be compared with."""
    if target not in COMPARISON_TARGETS:
        nearest = suggest_nearest(target, COMPARISON_TARGETS)
        raise ValueError(f"--against: expected {' or '.join(COMPARISON_TARGETS)}, got {target!r}; {nearest}")


def build_comparison_tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """Build one table for each task and backbone of the runs."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        task, _, _, backbone = comparison.ours.key
        groups.setdefault((task, backbone), []).append(comparison)
    return [
        _build_table(f"{task} with {backbone}, against published", group) for (task, backbone), group in groups.items()
    ]


def _build_table(title: str, comparisons: Sequence[Comparison]) -> Table:
    sources, reasons, rows = Footnotes(uses_letters=False), Footnotes(uses_letters=True), []
    for c in comparisons:
        _, method, shots, _ = c.ours.key
        method += "*" * c.ours.is_oracle
        published = f"{'~' * (c.theirs.tolerance > 0)}{c.published_value:.2f}{_format_std(c)}"
        source = f"[{sources.add(_describe_source(c))}]"
        marks = " ".join(sorted(reasons.add(reason) for reason in c.reasons))
        row = [_format_dataset(c.ours), method, "all" if shots is None else str(shots), c.metric]
        rows.append([*row, str(c.our_value), published, f"{c.difference:+.1f}", source, marks])
    notes = [f"source {line}" for line in sources.format_lines()] + reasons.format_lines()
    notes += [ORACLE_NOTE] if any(c.ours.is_oracle for c in comparisons) else []
    return Table(title, COMPARISON_HEADER, rows, footnotes=tuple(notes), left_columns=LEFT_COLUMNS)


def _describe_source(comparison: Comparison) -> str:
    theirs = comparison.theirs
    run_by = f"run by {theirs.run_by}" if theirs.run_by else ""
    parts = theirs.source.text, f"{theirs.title}, {theirs.backbone}", theirs.source.extraction, run_by, theirs.note
    return "; ".join(part for part in parts if part)


def _format_dataset(ours: AggregatedResult) -> str:
    """Name the dataset, with the number of stages of a stream, or the number of pairs of domains."""
    if ours.key[0] == DOMAIN:
        return f"{ours.dataset} ({len(ours.members)} pair{'s' * (len(ours.members) != 1)})"
    if ours.config["task"].get("joint"):
        return f"{ours.dataset} (joint)"
    stages = sorted({p["stages"] for p in ours.protocols if "stages" in p})
    return ours.dataset + (f" ({'-'.join(map(str, stages))} stages)" if stages else "")


def _format_std(comparison: Comparison) -> str:
    std = comparison.theirs.std.get(comparison.metric)
    return "" if std is None else f"±{std:.2f}"


def describe_unmatched(unmatched: Sequence[AggregatedResult]) -> str:
    """Name the results without a published counterpart; empty if there are none."""
    names = dict.fromkeys(f"{ours.key[1]} ({ours.key[0]} on {ours.dataset})" for ours in unmatched)
    return f"nothing published for: {', '.join(names)}" if names else ""


def render_comparison(
    comparisons: Sequence[Comparison], unmatched: Sequence[AggregatedResult], output_format: str
) -> str:
    """Write the comparison as "markdown", "latex", "csv" or "json"."""
    if is_for_programs(output_format):
        return render_records([c.to_flat_dict() for c in comparisons], output_format)
    note = describe_unmatched(unmatched)
    text = render_tables(build_comparison_tables(comparisons), COMPARISON_UNITS, output_format) if comparisons else ""
    if output_format == "latex":
        note = escape_latex(note)
    return "\n".join(part for part in (text, f"{note}\n" if note else "") if part) or "\n"
