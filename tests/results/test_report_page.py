"""The page of a report: names stay texts, the same content gives the same bytes, and files of others stay."""

import json
import re
from html.parser import HTMLParser

import pytest

from vlprompt.results.plots.figure import Figure
from vlprompt.results.report.content import Gallery, ImageGroup, Report, ReportImage, ReportTable, Section
from vlprompt.results.report.folder import LIST_NAME, write_report_folder
from vlprompt.results.report.page import render_page_files, render_single_page
from vlprompt.results.tables.formats import Table

EVIL = "</script><script>alert(1)</script>"


def draw(axes):
    axes.plot([1, 2], [3, 4], label="$x")
    axes.set_title(EVIL)
    axes.legend()


def make_report(name="a"):
    table = Table(EVIL, ["method", "accuracy"], [[EVIL, "90.0±1.0"], ["coop", "80.0"]], footnotes=(EVIL,))
    trace = {"type": "scatter", "x": [1, 2], "y": [3, 4], "name": EVIL}
    figures = [
        Figure(f"shots-{name}", EVIL, EVIL, draw, {"data": [trace], "layout": {}}, table),
        Figure(f"bars-{name}", "bars", "no more", draw),
    ]
    gallery = Gallery(EVIL, [ImageGroup(EVIL, [ReportImage(b"jpeg", EVIL)])])
    tables = [ReportTable("results", table, EVIL, marks={(0, 1): "best"})]
    section = Section("results", EVIL, (EVIL,), tables, figures, [gallery], [EVIL])
    return Report(EVIL, EVIL, [section, Section("empty", "Empty")], {"tables/more.csv": (b"a,b\n", EVIL)})


class Reader(HTMLParser):
    """Collects the elements of a page, and the texts of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.targets, self.scripts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.targets.append(value)
            assert not name.startswith("on"), name

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script" and data.strip():
            self.scripts.append(data)


@pytest.fixture(scope="module")
def files():
    return render_page_files(make_report())


def test_names_stay_texts(files):
    page = files["index.html"].decode()
    reader = Reader(page)
    assert not [script for script in reader.scripts if script.startswith("alert")]
    assert json.loads(reader.scripts[0])["data"][0]["name"] == EVIL  # the data of the figure, as they were
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    assert "alert(1)</script>" not in page


def test_code_in_texts():
    section = Section("a", "A", ("give `--look <x>` or ` alone",))
    page = render_page_files(Report("A", "", [section]))["index.html"].decode()
    assert "<p>give <code>--look &lt;x&gt;</code> or ` alone</p>" in page


def test_every_link_leads_to_a_file_or_an_anchor(files):
    reader = Reader(files["index.html"].decode())
    for target in reader.targets:
        if target.startswith("#"):
            assert target[1:] in reader.ids, target
        elif not target.startswith("data:"):
            assert target in files, target
    assert len(reader.ids) == len(set(reader.ids))
    assert "empty" not in reader.ids


def test_tables_and_figures_are_files(files):
    figure = {f"figures/shots-a.{suffix}" for suffix in ("svg", "png", "pdf", "csv", "md", "tex")}
    picture = {f"figures/bars-a.{suffix}" for suffix in ("svg", "png", "pdf")}
    tables = {f"tables/results.{suffix}" for suffix in ("csv", "md", "tex")}
    own = {"index.html", "assets/report.css", "assets/report.js", "assets/plotly.min.js", "tables/more.csv"}
    assert files.keys() == own | figure | picture | tables
    assert files["figures/shots-a.png"][1:4] == b"PNG"
    assert r"\toprule" in files["tables/results.tex"].decode()
    assert files["tables/results.csv"].decode().splitlines()[2] == "coop,80.0"


def test_a_picture_takes_the_colours_of_the_page(files):
    page = files["index.html"].decode()
    svg = re.search(r"<svg.*?</svg>", page, re.DOTALL)[0]
    assert "currentColor" in svg
    assert "#010203" not in page
    assert "#010203" not in files["figures/shots-a.svg"].decode()


def test_the_same_content_gives_the_same_bytes(files):
    assert render_page_files(make_report()) == files


def test_a_single_page_has_everything():
    page = render_single_page(make_report()).decode()
    reader = Reader(page)
    assert [target for target in reader.targets if not target.startswith(("#", "data:"))] == []
    assert reader.tags.count("script") == 3  # data of a figure, Plotly and our own
    assert reader.tags.count("style") == 1


def test_files_of_others_stay(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "mine.png").write_bytes(b"mine")
    write_report_folder(tmp_path, {"index.html": b"1", "figures/old.png": b"1"})
    write_report_folder(tmp_path, {"index.html": b"2", "figures/new.png": b"2"})
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"index.html", LIST_NAME, "figures/mine.png", "figures/new.png"}
    with pytest.raises(ValueError, match=r"'figures.mine.png' of another origin"):
        write_report_folder(tmp_path, {"figures/mine.png": b"3"})
    assert (tmp_path / "figures" / "mine.png").read_bytes() == b"mine"


@pytest.mark.parametrize("text", ["{", "{}", '["../outside"]', '["/etc/hosts"]', "[1]"])
def test_a_broken_list_of_files_removes_nothing(tmp_path, text):
    (tmp_path / LIST_NAME).write_text(text)
    with pytest.raises(ValueError, match="expected the list of a report's files"):
        write_report_folder(tmp_path, {"index.html": b"1"})
