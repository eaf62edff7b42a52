"""Parse the fenced blocks of a Markdown page: what is run, what is written to a file, and what is output."""

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)(?P<mark>`{3,}|~{3,}) *(?P<kind>[\w+-]*)(?P<info>[^`]*)$")
TITLE = re.compile(r'\btitle="([^"]+)"')
NOT_RUN = re.compile(r"<!-- *not run: *(.*?) *-->")
EXITS = re.compile(r"<!-- *exits (\d+) *-->")
RUN_KINDS = ("bash", "python")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        kind: the first word of its info string: bash, python, text, yaml; "" without one.
        title: the file that it is written to, "" for none.
        text: what it holds, without indentation of the fence, with a newline at its end.
        line: the number of the line of its opening fence, from 1.
        end: the number of the line of its closing fence.
        indent: how many spaces stand before its fences.
        not_run: why it is not run, "" where it is.
        exit_status: what its last command exits with.
        is_output: whether it is the output of the block before it.
    """

    kind: str
    title: str
    text: str
    line: int
    end: int
    indent: int = 0
    not_run: str = ""
    exit_status: int = 0
    is_output: bool = False

    @property
    def is_run(self) -> bool:
        return self.kind in RUN_KINDS and not self.title and not self.not_run


def read_blocks(page: Path) -> list[Block]:
    """Return all fenced blocks of a page, from top to bottom."""
    return parse_blocks(page.read_text("utf-8"), str(page))


def parse_blocks(markdown: str, name: str = "page") -> list[Block]:
    """Return all fenced blocks of a Markdown text, from top to bottom.

    Args:
        markdown: the text.
        name: what an error calls it.

    Raises:
        ValueError: where a fence is never closed.
    """
    lines, blocks, i = markdown.splitlines(), list[Block](), 0
    while i < len(lines):
        if fence := FENCE.match(lines[i]):
            end = _find_end(lines, i, fence["mark"], name)
            blocks.append(_make_block(lines, i, end, fence, blocks[-1] if blocks else None))
            i = end
        i += 1
    return blocks


def _find_end(lines: list[str], start: int, mark: str, name: str) -> int:
    closing = re.compile(rf"^ *{re.escape(mark[0])}{{{len(mark)},}} *$")
    for i in range(start + 1, len(lines)):
        if closing.match(lines[i]):
            return i
    raise ValueError(f"{name}:{start + 1}: expected a closing fence, got the end of the page. Add one.")


def _make_block(lines: list[str], start: int, end: int, fence: re.Match[str], before: Block | None) -> Block:
    indent = len(fence["indent"])
    body = "".join(f"{line[indent:] if not line[:indent].strip() else line}\n" for line in lines[start + 1 : end])
    above = start - 1
    while above >= 0 and (not lines[above].strip() or lines[above].strip().startswith("<!--")):
        above -= 1
    comments = "\n".join(lines[above + 1 : start])
    not_run, exits, title = NOT_RUN.search(comments), EXITS.search(comments), TITLE.search(fence["info"])
    directly_after = before is not None and above == before.end - 1 and not comments.strip()
    is_output = fence["kind"] == "text" and directly_after and before.kind in RUN_KINDS and not before.title
    return Block(
        kind=fence["kind"],
        title=title[1] if title else "",
        text=body,
        line=start + 1,
        end=end + 1,
        indent=indent,
        not_run=not_run[1] if not_run else "",
        exit_status=int(exits[1]) if exits else 0,
        is_output=is_output,
    )
