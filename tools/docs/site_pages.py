"""Everything of the site that is generated: pages of the reference, of the repository's files, and the navigation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from docs import method_index, method_pages
from docs.markdown_text import page_title, table
from docs.paths import ROOT
from docs.tables import api, backbones, command_line, datasets, heads, metrics, preprocessing, settings, tasks

STYLESHEET = "stylesheets/reference.css"
TABLES: dict[str, tuple[str, str, Callable[[], str]]] = {  # file -> (title, what it has, builder)
    "tasks": ("Tasks", "what is trained and tested on, with all settings", tasks.build),
    "datasets": ("Datasets", "every card: source, licence, classes, template, what it needs", datasets.build),
    "backbones": ("Backbones", "what --backbone takes", backbones.build),
    "heads": ("Heads", "what turns features into answers", heads.build),
    "preprocessing": ("Preprocessing", "presets and fields", preprocessing.build),
    "metrics": ("Metrics", "every number of a result, with its definition", metrics.build),
    "settings": ("Settings", "every key of a configuration, in one table", settings.build),
    "cli": ("Command line", "every command with its options", command_line.build),
    "api": ("Python", "the public contract", api.build),
}
ROOT_PAGES = {"changelog.md": "CHANGELOG.md", "security.md": "SECURITY.md"}  # page of docs/ -> file of the repository


def build_reference() -> dict[str, str]:
    """Return {source path below docs/: Markdown} of the reference."""
    pages = {"reference/index.md": build_index(), "reference/methods/index.md": method_index.build_method_index()}
    pages |= {path: method_pages.build_method_page(Path(path).stem) for path in method_pages.list_method_pages()}
    return pages | {f"reference/{name}.md": build() for name, (_, _, build) in TABLES.items()}


def build_index() -> str:
    """Return the first page of the reference."""
    lines = page_title(
        "Reference", "Generated from the code, its docstrings, cards and recipes whenever the site is built."
    )
    rows = [
        ["[Methods](methods/index.md)", "every method: equation, where it enters, settings, recipes, what holds it"]
    ]
    rows += [[f"[{title}]({name}.md)", text] for name, (title, text, _) in TABLES.items()]
    return "\n".join([*lines, *table(["page", "what it has"], rows)])


def build_navigation() -> list[Any]:
    """Return the section Reference of the navigation."""
    titles = method_pages.list_method_pages()
    groups: list[Any] = ["reference/methods/index.md"]
    for title, names in method_index.list_groups().items():
        pages = [f"reference/methods/{name}.md" for name in names]
        groups.append({title: [{titles[page]: page} for page in pages]})
    tables = [{title: f"reference/{name}.md"} for name, (title, _, _) in TABLES.items()]
    return ["reference/index.md", {"Methods": groups}, *tables]


def build_root_pages(docs: Path) -> dict[str, str]:
    """Return {page: text} of the repository's own pages, unless docs/ has such a page."""
    return {
        page: (ROOT / file).read_text("utf-8")
        for page, file in ROOT_PAGES.items()
        if (ROOT / file).is_file() and not (docs / page).is_file()
    }
