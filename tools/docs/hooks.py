"""Hooks of the site's build: pages generated from the code, and links from a page to files of the repository."""

import posixpath
import sys
from pathlib import Path
from typing import Any

TOOLS = str(Path(__file__).resolve().parents[1])
if TOOLS not in sys.path:
    sys.path.insert(0, TOOLS)

from docs import notebooks, site_pages  # noqa: E402
from docs.equations import convert_blocks  # noqa: E402
from docs.paths import ROOT  # noqa: E402
from docs.repository_links import (  # noqa: E402
    PICTURES,
    build_file_page,
    find_targets,
    rewrite_links,
    site_path,
)


def on_config(config: Any) -> Any:
    """Fill the section Reference of the navigation, and add the stylesheet."""
    for section in config.nav or []:
        if "Reference" in section:
            section["Reference"] = site_pages.build_navigation()
    config.extra_css.append(site_pages.STYLESHEET)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add generated pages, and the repository's files that pages link to."""
    from mkdocs.structure.files import File

    pages = site_pages.build_reference() | site_pages.build_root_pages(Path(config.docs_dir))
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    for file in [file for file in files if file.src_uri.startswith("reference/") and file.src_uri.endswith(".yaml")]:
        files.remove(file)  # the sources of equations
    styles = (Path(__file__).parent / "reference.css").read_text("utf-8")
    files.append(File.generated(config, site_pages.STYLESHEET, content=styles))
    for target in _collect_targets(files):
        path = site_path(target)
        if target.endswith(PICTURES):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / target)))
        elif files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, content=build_file_page(target)))
    notebooks.on_files(files, config)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite links that lead out of docs/, and turn equations into MathML."""
    path = page.file.src_uri
    return convert_blocks(rewrite_links(markdown, _base_folder(path), path))


def _base_folder(path: str) -> str:
    """Return the folder below the repository that the links of a page are relative to."""
    if path in site_pages.ROOT_PAGES and not (ROOT / "docs" / path).is_file():
        return "."
    return posixpath.join("docs", posixpath.dirname(path))


def _collect_targets(files: Any) -> list[str]:
    """Return the repository's files that the pages link to, and those that these link to."""
    pending = [(file.content_string, _base_folder(file.src_uri)) for file in files.documentation_pages()]
    targets: dict[str, None] = {}
    while pending:
        for target in find_targets(*pending.pop()):
            if target not in targets:
                targets[target] = None
                if target.endswith(".md") and (ROOT / target).is_file():
                    pending.append(((ROOT / target).read_text("utf-8"), posixpath.dirname(target) or "."))
    return list(targets)
