"""One page per method: its paper, equation, picture, arguments, recipes, evidence and measured rows."""

from typing import Any

from docs.arguments import arguments_table, describe_arguments
from docs.docstrings import MethodHeader, read_method_header, read_summary
from docs.equations import display_equation, explain_equation, read_equations
from docs.evidence import describe_evidence
from docs.markdown_text import escape, fenced
from docs.measured import describe_measured
from docs.paths import METHODS_FOLDER
from docs.recipes import describe_recipes
from docs.site_pictures import describe_sites, draw
from docs.site_trace import find_tower_kind, trace_method
from vlprompt import methods
from vlprompt.cli.listing import UNLABELLED_USE, group_methods
from vlprompt.config.build import resolve_class

LM = "language model"
TO_ROOT, TO_DOCS = "../../../", "../../"  # from docs/reference/methods/
NEEDS = {
    "CLIP": "a CLIP: an image tower and a text tower",
    "image tower": "an image tower (of a CLIP, or a ViT alone)",
    "language model": "a language model",
    "tower": "an image tower or a language model",
}
SECTIONS = (
    "Equation",
    "Where it enters the towers",
    "Arguments",
    "Differs from",
    "Expected numbers",
    "Recipes",
    "Evidence",
    "On the embedded backbone",
)


def build_method_page(name: str) -> str:
    """Return the page of a method as Markdown."""
    header = read_method_header(METHODS_FOLDER / f"{name}.py")
    cls = resolve_class("method", name)
    title = header.title.partition(":")[0]
    lines = [f"# {title}", "", f"`{name}`: {escape(header.title)}", ""]
    lines += [line for part in header.idea for line in (escape(part), "")]
    lines += [f"It needs {NEEDS[find_tower_kind(name)]}.", ""]
    lines += fenced("bash", example_command(name))
    sections = (
        _describe_equation(name),
        _describe_picture(name, title, header),
        _describe_arguments(cls),
        [escape(header.differs), ""],
        [escape(header.expected), ""],
        describe_recipes(name, TO_ROOT),
        describe_evidence(name, TO_ROOT),
        describe_measured(name, TO_DOCS),
    )
    for heading, section in zip(SECTIONS, sections, strict=True):
        lines += [f"## {heading}", "", *section]
    path = f"vlprompt/methods/{name}.py"
    return "\n".join([*lines, f"Source: [{path}]({TO_ROOT}{path})", ""])


def example_command(name: str) -> str:
    """Return a command that runs the method on data that come with the package."""
    scheme = "hf-nf4" if name == "qlora" else "hf"
    uses = {entry.name: group.use for group in group_methods() for entry in group.methods}
    if find_tower_kind(name) == LM:
        return f"vlprompt run {name} docstrings --backbone {scheme}:FOLDER --shots 16"
    if uses[name] == UNLABELLED_USE:
        return f"vlprompt run {name} --source glyphs --target digits"
    if uses[name] == "streams":
        return f"vlprompt run {name} digits --task continual task.stages=5"
    return f"vlprompt run {name} digits --shots 16"


def _describe_equation(name: str) -> list[str]:
    equation: dict[str, Any] | None = read_equations().get(name)
    if equation is None:
        return ["It is not written out yet.", ""]
    return [display_equation(equation["tex"]), "", explain_equation(str(equation.get("where", ""))), ""]


def _describe_picture(name: str, title: str, header: MethodHeader) -> list[str]:
    trace = trace_method(name)
    depth = " and ".join(f"{t.depth} blocks in the {t.name}{'' if t.name == LM else ' tower'}" for t in trace.towers)
    settings = f" Other settings than the defaults: `{trace.settings}`." if trace.settings else ""
    return [
        f"Sites: {escape(header.sites)}",
        "",
        draw(trace, f"Where {title} enters the towers"),
        "",
        f"The picture is what the method did on a small backbone ({depth}): one lesson was begun and one batch "
        f"answered.{settings} Coloured: trained. Grey squares: not trained. The rest is frozen.",
        "",
        *(f"- {escape(line)}" for line in describe_sites(trace)),
        "",
    ]


def _describe_arguments(cls: type) -> list[str]:
    lines = [escape(read_summary(cls.__doc__ or "")), ""]
    lines += arguments_table(cls, "method.")
    backbones = [f"`{one.name}`: {escape(one.description)}" for one in describe_arguments(cls) if one.is_backbone]
    if backbones:
        lines += [f"In Python the backbone comes first: {'; '.join(backbones)}", ""]
    if any(one.type == "a head" for one in describe_arguments(cls)):
        lines += ["Heads: [heads](../heads.md).", ""]
    return lines


def list_method_pages() -> dict[str, str]:
    """Return {page: title} of all methods, in the order of their names."""
    return {
        f"reference/methods/{name}.md": read_method_header(METHODS_FOLDER / f"{name}.py").title.partition(":")[0]
        for name in methods.find_classes()
    }
