"""The pages for readers: every link leads somewhere, every command shown is one, every figure of the README stands."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from docs.page_blocks import parse_blocks
from docs.page_links import FIGURE, iter_links, list_anchors, list_pages, strip_code
from docs.page_runner import run_page
from docs.readme_tables import fill_tables
from docs.site_pages import ROOT_PAGES, TABLES

from vlprompt import methods
from vlprompt.cli import app as cli

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = list_pages(ROOT)
PLACEHOLDER = re.compile(r"path/to|\b[A-Z][A-Z_]{2,}\b|\bmy_package\b|\banchored\b")  # what only the reader has


def name(page):
    return str(page.relative_to(ROOT))


def is_generated(target):
    """Whether the site's build makes this page."""
    folder = ROOT / "docs/reference"
    names = {folder / f"{page}.md" for page in ("index", *TABLES)} | {folder / "methods/index.md"}
    names |= {folder / f"methods/{method}.md" for method in methods.find_classes()}
    return target in names | {ROOT / "docs" / page for page in ROOT_PAGES} or target.suffix == ".ipynb"


def find_dead_links(page, text):
    dead = []
    for line, link in iter_links(text):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() and not is_generated(target):
            dead.append(f"{name(page)}:{line}: no file {link}")
        elif anchor and target.suffix == ".md" and target.exists():
            other = text if target == page else target.read_text("utf-8")
            dead += [] if anchor in list_anchors(other) else [f"{name(page)}:{line}: no heading for {link}"]
    return dead


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    assert not find_dead_links(page, page.read_text("utf-8"))


def test_a_dead_link_is_found():
    text = "# One\n[a](docs/nothing.md) [b](#two) [c](#one) `[d](none.md)` [e](docs/index.md#nowhere)\n"
    assert [line.split(": ")[1] for line in find_dead_links(README, text)] == [
        "no file docs/nothing.md",
        "no heading for #two",
        "no heading for docs/index.md#nowhere",
    ]


STUB = """
command_not_found_handle() { :; }
show() { local words; printf -v words '\\37%s' "$@"; printf '%s%s\\36' "$LINE" "$words"; }
vlprompt() { show "$@"; }
torchrun() { while [ $# -gt 0 ] && [ "$1" != vlprompt ]; do shift; done; [ $# -gt 0 ] && shift && show "$@"; }
"""


def expand_commands(page, folder):
    """Return (line, words) of every vlprompt command of a page's bash blocks, expanded by a shell without programs."""
    script = STUB
    for block in parse_blocks(page.read_text("utf-8"), name(page)):
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text, "utf-8")
        if block.kind == "bash" and not block.title:
            script += f"LINE={block.line}\n{block.text}\nwait\n"
    shell = [shutil.which("bash"), "--norc", "-c", script]
    out = subprocess.run(
        shell, cwd=folder, env={"PATH": "", "HOME": str(folder)}, capture_output=True, text=True, timeout=60
    ).stdout
    return [(int(line), words) for line, *words in (row.split("\37") for row in out.split("\36") if "\37" in row)]


class Understood(Exception):
    pass


def explain_command(words, monkeypatch):
    """Return why a command is none, "" if it is one. run and search resolve their settings too, and stop there."""
    from vlprompt.experiments.sweeps import combinations

    resolve = combinations.resolve_sweep

    def resolve_and_stop(*args, **options):
        resolve(*args, **options)
        raise Understood

    monkeypatch.setattr(combinations, "resolve_sweep", resolve_and_stop)
    try:
        if words[:1] == ["run"] and "-c" not in words and "--processes" not in words:
            cli.build_command()(words, standalone_mode=False)
        context, command = None, cli.build_command()
        while words and hasattr(command, "commands"):
            group = command.make_context(command.name, list(words), parent=context)
            context, command, words = group, command.commands[words[0]], words[1:]
        command.make_context(command.name, list(words), parent=context)
    except Understood:
        return ""
    except Exception as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        shows_nothing_here = bool(PLACEHOLDER.search(" ".join(words))) or "no data" in text
        return "" if shows_nothing_here and not hasattr(error, "format_message") else f"{error!r}: {text}"
    finally:
        monkeypatch.undo()
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_shown_are_commands(page, tmp_path, monkeypatch):
    commands, faults = expand_commands(page, tmp_path), []
    for line, words in commands:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("VLPROMPT_DATA", str(tmp_path))
        monkeypatch.syspath_prepend(tmp_path)
        if fault := explain_command(words, monkeypatch):
            faults.append(f"{name(page)}:{line}: vlprompt {' '.join(words)}: {fault}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "words",
    [["run", "coop", "digits", "--shot", "3"], ["run", "cooop", "digits"], ["run", "coop", "digits", "method.ctx=3"],
     ["tables"], ["data", "prepar", "dtd"], ["eval", "--figures", "x"]],
    ids=" ".join,
)  # fmt: skip
def test_a_command_that_is_none_is_found(words, monkeypatch):
    assert explain_command(words, monkeypatch)


def test_the_readme_is_short():
    text = README.read_text("utf-8")
    assert text.count("\n") <= 250
    assert len(text.encode()) <= 20_000


def test_the_tables_of_the_readme_are_current():
    text = README.read_text("utf-8")
    assert text == fill_tables(text), "run python tools/docs/readme_tables.py"


def find_unfounded_figures(text):
    """Return the decimals of a text that stand in no file of tools/results that their paragraph links to."""
    marked = re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", "", text, flags=re.DOTALL)  # held by the test above
    unfounded = []
    for paragraph in re.split(r"\n\s*\n|\n(?=- )", strip_code(marked)):
        figures = [figure[0] for figure in FIGURE.finditer(paragraph)]
        files = [ROOT / link for _, link in iter_links(paragraph) if link.startswith("tools/results/")]
        evidence = " ".join(file.read_text("utf-8") for file in files if file.suffix == ".md")
        unfounded += [f for f in figures if not re.search(rf"(?<![\d.]){re.escape(f)}(?!\d)", evidence)]
    return unfounded


def test_every_figure_of_the_readme_was_measured():
    text = README.read_text("utf-8")
    versions = {"3.11", "3.13", "2.9", "2.14"}
    assert set(find_unfounded_figures(text)) <= versions
    assert "0.7123" in find_unfounded_figures(text.replace("0.70 s", "0.7123 s"))
    golden = len(list((ROOT / "tests/golden").glob("*.json")))
    assert f"{golden} [golden vectors]" in text
    assert f"{len(methods.find_classes())} methods" in text


@pytest.mark.page
def test_the_readme_runs(tmp_path):
    from docs.outputs import find_difference

    for output in run_page(README, tmp_path):
        if output.shown:
            difference = find_difference(output.shown.text, output.text)
            assert not difference, f"README.md:{output.shown.line}\n{difference}"


ABSOLUTE_PATH = re.compile(r"(?<![\w.)\]/~*}:-])/(?!path/to|proc/)[a-zA-Z]\w*/\w")
ADDRESS = re.compile(r"https?://([\w.-]+)|\b(localhost|[\w-]+\.(?:org|io|net|com)):?\d*(?=/)")
HOSTS = {"127.0.0.1", "keepachangelog.com", "semver.org", "python.org", "www.robots.ox.ac.uk"}


def find_places(text):
    """Return absolute paths, but for examples, and addresses of hosts that pages have no reason to name."""
    hosts = {host for match in ADDRESS.finditer(text) for host in match.groups() if host}
    return [match[0] for match in ABSOLUTE_PATH.finditer(text)] + sorted(hosts - HOSTS)


def test_pages_name_no_place_of_one_machine():
    shown = os.environ.get("VIRTUAL_ENV", "")
    for page in PAGES:
        text = page.read_text("utf-8")
        assert not find_places(text), name(page)
        assert not re.search(r"localhost:\d", text), name(page)
        assert not shown or shown not in text


@pytest.mark.parametrize(
    "text", ["in /home/me/x", "`/tmp/run`", "see https://registry.example/simple", "registry.example.org/simple"]
)
def test_a_place_of_one_machine_is_found(text):
    assert find_places(text)
