"""Compare the output that a page shows with what was printed: what differs from run to run is not compared."""

import difflib
import re

ANY_LINES = "..."
PROGRESS = re.compile(r"[━╸╺]|\d+/\d+ (-:--:--|\d+:\d\d:\d\d)")
PLACE = "/path/to"  # what a page shows for the folder that it is run in
SUBSTITUTIONS = (
    (re.compile(r"(?<![\w./])~?/(?:[\w.@+-]+/)*(?=[\w.@+-])"), "/"),  # absolute paths: their last part stays
    (re.compile(r"\b\d+\.\d+\.\d+(?:[.+]\w+)*\b"), "VERSION"),
    (re.compile(r"\b\d+(?:\.\d+)? ?(?:[kMG]i?B|bytes)\b"), "SIZE"),
    (re.compile(r"\b\d+(?:\.\d+)? ?(?:ms|s|seconds?|min|minutes?)\b"), "TIME"),
    (re.compile(r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?)?Z?"), "DATE"),
    (re.compile(r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,64}\b"), "HASH"),
    (re.compile("[─━]+"), "─"),
    (re.compile(r"-{3,}"), "---"),
    (re.compile(r"\s+"), " "),
)
DECIMAL = re.compile(r"(?<![\w.])-?\d+\.\d+(?:e[+-]\d+)?(?![\w.])")
VARYING_COLUMNS = ("s", "MB", "seconds")
COST_COLUMNS = re.compile(r"(?P<before>^.*\S) +n +trained( +\S+)* +s +MB *$")
HIDDEN_COLUMNS = re.compile(r"^\([^()]*\bin a wider\s+terminal,\s+or\s+by\s+--markdown\)$", re.MULTILINE)


def clean_output(text: str, folder: str = "") -> str:
    """Return what a page shows of an output: without progress bars, ends of lines and the name of the folder."""
    if folder:
        text = text.replace(folder, PLACE)
    lines = [line.rstrip() for line in text.expandtabs().splitlines() if not PROGRESS.search(line)]
    return "\n".join(lines).strip("\n") + "\n"


def normalise(text: str) -> list[str]:
    """Return the lines of an output as they are compared; empty lines are left out."""
    lines = []
    for line in _hide_varying_columns(clean_output(text).splitlines()):
        for pattern, replacement in SUBSTITUTIONS:
            line = pattern.sub(replacement, line)
        if line.strip():
            lines.append(line.strip())
    return lines


def _hide_varying_columns(lines: list[str]) -> list[str]:
    """Replace the cells of seconds and megabytes in tables of the terminal and of Markdown."""
    hidden, ends, cells = list[str](), list[int](), list[int]()
    for i, line in enumerate(lines):
        below = lines[i + 1].strip() if i + 1 < len(lines) else ""
        if below and not below.strip("─"):
            ends = [m.end() for m in re.finditer(r"\S+", line) if m.group() in VARYING_COLUMNS]
        elif re.fullmatch(r"[|:\- ]+", below) and below.startswith("|"):
            cells = [n for n, cell in enumerate(line.split("|")) if cell.strip() in VARYING_COLUMNS]
        elif not line.strip():
            ends, cells = [], []
        elif line.startswith("|"):
            line = "|".join(" N " if n in cells and cell.strip() else cell for n, cell in enumerate(line.split("|")))
        else:
            line = re.sub(r"\S+", lambda m, ends=ends: "N" if m.end() in ends else m.group(), line)
        hidden.append(line)
    return hidden


def _drop_cost_columns(text: str) -> str:
    """Remove the columns of cost from the tables of the terminal, as a terminal does where they do not fit."""
    lines, edge = list[str](), None
    for line in HIDDEN_COLUMNS.sub("", text).splitlines():
        if header := COST_COLUMNS.match(line):
            edge = len(header["before"])
        elif not line.strip():
            edge = None
        lines.append(line[:edge])
    return "\n".join(lines)


def lines_agree(shown: str, printed: str) -> bool:
    """Compare two normalised lines; a shown line that ends in ... may go on.

    Decimal numbers agree within rounding between processors: 0.01 and 5 percent of the number, at most 0.5.
    """
    if shown == printed:
        return True
    if shown.endswith(ANY_LINES):
        stem = shown.removesuffix(ANY_LINES).rstrip()
        return any(_agree_in_numbers(stem, printed[:n].rstrip()) for n in range(max(len(stem) - 8, 0), len(stem) + 9))
    return _agree_in_numbers(shown, printed)


def _agree_in_numbers(shown: str, printed: str) -> bool:
    if DECIMAL.sub("N", shown) != DECIMAL.sub("N", printed):
        return False
    pairs = zip(DECIMAL.findall(shown), DECIMAL.findall(printed), strict=True)
    return all(abs(float(a) - float(b)) <= min(0.01 + 0.05 * abs(float(a)), 0.5) for a, b in pairs)


def find_difference(shown: str, printed: str) -> str:
    """Return how a shown output differs from the printed one as a diff, "" where they agree.

    Args:
        shown: what the page has; a line `...` stands for any lines.
        printed: what was printed.
    """
    if HIDDEN_COLUMNS.findall(shown) != HIDDEN_COLUMNS.findall(printed):
        # one digit more of seconds can make a table too wide for its columns of cost
        shown, printed = _drop_cost_columns(shown), _drop_cost_columns(printed)
    wanted, got = normalise(shown), normalise(printed)
    if _match(wanted, got):
        return ""
    return "\n".join(difflib.unified_diff(wanted, got, "shown", "printed", lineterm="", n=2))


def _match(wanted: list[str], got: list[str]) -> bool:
    reachable = {0}  # how many printed lines the shown lines so far can stand for
    for line in wanted:
        if line == ANY_LINES:
            reachable = set(range(min(reachable), len(got) + 1)) if reachable else set()
        else:
            reachable = {n + 1 for n in reachable if n < len(got) and lines_agree(line, got[n])}
    return len(got) in reachable


def rewrite_output(shown: str, printed: str) -> str:
    """Return the output that a page should show: the old one where it agrees, long lines shortened as they were."""
    if not find_difference(shown, printed):
        return shown
    shortened = [line for line in shown.splitlines() if line.endswith(ANY_LINES) and line != ANY_LINES]
    lines = []
    for line in printed.splitlines():
        [same] = normalise(line) or [""]
        short = [s for s in shortened if same and lines_agree(normalise(s)[0], same)]
        lines.append(short[0] if short else line)
    return "".join(f"{line}\n" for line in lines)
