"""Read the links, headings and figures of Markdown pages, as GitHub and the site understand them."""

import re
from collections.abc import Iterator
from pathlib import Path

from markdown.extensions.toc import slugify, unique

LINK = re.compile(r"(?<!\\)!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
FENCE = re.compile(r"^\s*(`{3,}|~{3,})")
CODE = re.compile(r"`+[^`]*`+")
FIGURE = re.compile(r"(?<![\w./:-])\d+(?:,\d{3})*\.\d+(?![\w-])(?!\.\d)")


def strip_code(markdown: str) -> str:
    """Return a page whose fenced blocks and code spans are blanked; its lines keep their numbers."""
    lines, mark = list[str](), ""
    for line in markdown.splitlines():
        fence = FENCE.match(line)
        if fence and not mark:
            mark = fence[1]
        elif fence and mark and fence[1].startswith(mark):
            mark = ""
        elif not mark:
            lines.append(CODE.sub(lambda code: "`" * len(code[0]), line))
            continue
        lines.append("")
    return "\n".join(lines)


def iter_links(markdown: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the target of every link and picture of a page, those in code left out."""
    text = strip_code(markdown)
    for match in LINK.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match[1]


def list_anchors(markdown: str) -> set[str]:
    """Return the anchors of a page's headings, as the site makes them."""
    anchors = set[str]()
    visible = strip_code(markdown).splitlines()
    for line, source in zip(visible, markdown.splitlines(), strict=True):
        if HEADING.match(line) and (heading := HEADING.match(source)):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "")
            unique(slugify(text, "-"), anchors)  # adds it
    return anchors


def list_pages(root: Path) -> list[Path]:
    """Return all Markdown pages for readers: those of the root, of docs/ and the contract of methods."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md")), root / "vlprompt/methods/README.md"]
