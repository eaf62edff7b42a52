"""One table value, written in every format."""

import csv
import json

from vlprompt.results.tables.formats import Table, render_csv, render_json, render_latex, render_markdown

TABLE = Table("few_shot on digits", ["method", "n", "source"], [["a_b", "50.0±1.5", "x"]], footnotes=("a -> b: 5%",),
              left_columns=("source",))  # fmt: skip


def test_markdown_aligns_numbers_to_the_right():
    lines = render_markdown([TABLE], "percent").splitlines()
    assert lines[0] == "**few_shot on digits** (percent)"
    assert lines[2:5] == ["| method | n | source |", "| --- | ---: | --- |", "| a_b | 50.0±1.5 | x |"]
    assert lines[-1] == "- a -> b: 5%"


def test_latex_escapes_and_uses_booktabs():
    text = render_latex([TABLE, TABLE], "percent, %")
    assert text.count(r"\begin{tabular}{lrl}") == 2
    assert r"\caption{few\_shot on digits (percent, \%)}" in text
    assert "\\toprule\nmethod & n & source \\\\\n\\midrule\na\\_b & 50.0$\\pm$1.5 & x \\\\\n\\bottomrule" in text
    assert r"\par\footnotesize a $\to$ b: 5\%" in text


def test_records_keep_every_column():
    records = [{"a": 1, "b": ["x", "y"]}, {"a": 2, "c": "ü"}]
    assert [*csv.DictReader(render_csv(records).splitlines())] == [
        {"a": "1", "b": "x; y", "c": ""},
        {"a": "2", "b": "", "c": "ü"},
    ]
    assert render_csv([], ["a", "b"]).splitlines() == ["a,b"]
    assert json.loads(render_json(records)) == records
    assert "ü" in render_json(records, ascii_only=False)


def test_transposing_exchanges_rows_and_columns():
    other = TABLE.transpose()
    assert (other.header, other.rows) == (["", "a_b"], [["n", "50.0±1.5"], ["source", "x"]])


def test_markdown_escapes_bars():
    table = Table("t", ["a", "b|c"], [["x|y", "1"]])
    assert render_markdown([table], "percent").splitlines()[2:] == [r"| a | b\|c |", "| --- | ---: |", r"| x\|y | 1 |"]
