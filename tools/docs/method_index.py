"""The overview of all methods, grouped by what they need and what they are for."""

from docs.markdown_text import code, escape, table
from docs.site_trace import TowerTrace, trace_method
from vlprompt.cli.listing import NEEDS, group_methods


def list_groups() -> dict[str, list[str]]:
    """Return {title of a group: its methods}, as `vlprompt list methods` groups them."""
    groups = {}
    for group in group_methods():
        before = "Around" if group.needs == NEEDS["Method"] else "On"
        groups[f"{before} {group.needs}: {group.use}"] = [entry.name for entry in group.methods]
    return groups


def _summarise_tower(tower: TowerTrace) -> str:
    parts = []
    if tower.tokens:
        parts.append("tokens" if len(tower.tokens) == 1 else f"tokens at {len(tower.tokens)} layers")
    if tower.prefix:
        parts.append(f"prefixes at {len(tower.prefix)} layers")
    if tower.adapters:
        parts.append("adapters")
    if tower.trained_blocks:
        parts.append("all weights" if tower.trains_all else "last blocks")
    return f"{tower.name}: {', '.join(parts)}"


def summarise_sites(name: str) -> str:
    """Return in a few words what enters where."""
    trace = trace_method(name)
    entries = [_summarise_tower(tower) for tower in trace.towers if tower.is_changed]
    if trace.outside:
        names = dict.fromkeys(key.removeprefix("method.").split(".")[0] for key in trace.outside)
        entries.append("above the features: " + ", ".join(names))
    return "; ".join(entries) or "nothing"


def build_method_index() -> str:
    """Return the page as Markdown."""
    lines = [
        *("# Methods", ""),
        "Every method by its name on the command line; `vlprompt list methods` prints the same groups, "
        "`vlprompt show NAME` one method. An image tower may be that of a CLIP. What enters where is for default "
        "settings, with a linear head; each page has a picture.",
        "",
    ]
    entries = {entry.name: entry for group in group_methods() for entry in group.methods}
    for title, names in list_groups().items():
        rows = [
            [
                f"[{code(name)}]({name}.md)",
                entries[name].title,
                escape(entries[name].idea),
                escape(summarise_sites(name)),
            ]
            for name in names
        ]
        lines += [f"## {title}", "", *table(["name", "method", "what it is", "what enters where"], rows)]
    return "\n".join(lines)
