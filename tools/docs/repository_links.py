"""Links from a page to files of the repository: these become part of the site, and the links lead there."""

import os
import posixpath
import re
from html import escape
from pathlib import PurePosixPath

from markdown import markdown

from docs.markdown_text import replace_outside_fences
from docs.paths import ROOT

LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^()\s]+)((?:\s+\"[^\"]*\")?\))")
FENCE = re.compile(r"(^```.*?^```[ \t]*$|`[^`\n]+`)", re.M | re.S)
PICTURES = (".png", ".svg", ".jpg")
STYLE = (
    ":root{color-scheme:light dark}body{font-family:sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "pre{overflow-x:auto}table{border-collapse:collapse}td,th{border:1px solid gray;padding:.2rem .5rem}"
    "img{max-width:100%}"
)
FOLDER_OF_FILES = "files"  # of the site


def find_target(link: str, base: str) -> tuple[str, str] | None:
    """Return (path below the repository, anchor) of a link that leads out of docs/, None for any other link.

    Args:
        link: as it is written.
        base: the folder of the page below the repository, such as "docs/guides".
    """
    path, _, anchor = link.partition("#")
    if not path or "://" in path or path.startswith(("/", "mailto:")):
        return None
    target = os.path.normpath(PurePosixPath(base) / path)
    if target.startswith(("..", "docs/")) or target == "docs" or not (ROOT / target).exists():
        return None
    return target, anchor


def site_path(target: str) -> str:
    """Return the place of a repository's file in the source of the site."""
    if target == "CHANGELOG.md" or target == "SECURITY.md":
        return target.lower()
    if target.endswith(PICTURES):
        return f"{FOLDER_OF_FILES}/{target}"
    if (ROOT / target).is_dir():
        return f"{FOLDER_OF_FILES}/{target}/index.html"
    return f"{FOLDER_OF_FILES}/{target}.html"


def split_code(text: str) -> list[str]:
    """Return pieces of Markdown; those with an odd index are code."""
    return FENCE.split(text)


def find_targets(text: str, base: str) -> list[str]:
    """Return the repository's files that a page links to."""
    links = [match[2] for piece in split_code(text)[::2] for match in LINK.finditer(piece)]
    links += [match[1] for match in re.finditer(r"\]\(([^()\s]+)\)", text)]
    targets = [find_target(link, base) for link in links]
    return list(dict.fromkeys(target[0] for target in targets if target is not None))


def rewrite_links(text: str, base: str, page: str) -> str:
    """Return Markdown whose links out of docs/ lead to the files of the site.

    Args:
        text: the page.
        base: the folder below the repository that its links are relative to.
        page: its own place in the source of the site.
    """

    def rewrite(match: re.Match[str]) -> str:
        target = find_target(match[2], base)
        if target is None:  # a page of docs/, which a page of the root, such as SECURITY.md, calls by its whole path
            link = match[2].removeprefix("docs/") if base == "." and not os.path.dirname(page) else match[2]
            return match[1] + link + match[3]
        place, anchor = site_path(target[0]), f"#{target[1]}" if target[1] else ""
        return match[1] + os.path.relpath(place, os.path.dirname(page) or ".") + anchor + match[3]

    return replace_outside_fences(text, lambda piece: LINK.sub(rewrite, piece))


def build_file_page(target: str) -> str:
    """Return a plain HTML page that shows a file, or lists a folder, of the repository."""
    path = ROOT / target
    if path.is_dir():
        names = sorted(one.name + "/" * one.is_dir() for one in path.iterdir() if not one.name.startswith(("_", ".")))
        body = "<ul>" + "".join(f"<li><code>{escape(name)}</code></li>" for name in names) + "</ul>"
    elif target.endswith(".md"):
        text = rewrite_links(path.read_text("utf-8"), posixpath.dirname(target) or ".", site_path(target))
        body = markdown(text, extensions=["tables", "fenced_code"])
    else:
        body = f"<pre>{escape(path.read_text('utf-8'))}</pre>"
    home = os.path.relpath("index.html", posixpath.dirname(site_path(target)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(target)}</title>'
        f"<style>{STYLE}</style></head>"
        f'<body><p><a href="{home}">vlprompt</a> / <code>{escape(target)}</code></p>{body}</body></html>'
    )
