"""The glossary has every metric of the tables once, and the words that the docstrings avoid."""

import re
from collections import Counter
from pathlib import Path

from tests.test_house import PRIVATE_WORDS
from vlprompt.metrics import CONTINUAL_METRICS, DOMAIN_METRICS

PAGE = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text("utf-8")
TERMS, AVOIDED = PAGE.split("## Words that are not used")
RENAMED = {"forgetting_step": "by step"}  # in tables by another name than in result.json


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]


def terms() -> list[str]:
    return [term for cells in rows(TERMS) if cells[0] != "term" for term in re.split(r", (?![^(]*\))", cells[0])]


def test_each_term_stands_once():
    assert [term for term, count in Counter(terms()).items() if count > 1] == []


def test_every_row_has_a_meaning_of_one_sentence():
    assert [cells for cells in rows(PAGE) if len(cells) != 2 or not cells[1] or ". " in cells[1]] == []


def test_every_metric_of_a_table_is_explained():
    known = {term.lower() for term in terms()}
    names = {RENAMED.get(name, name.replace("_", " ")) for name in {**CONTINUAL_METRICS, **DOMAIN_METRICS}}
    assert names - known == set()


def test_words_that_docstrings_avoid_are_listed_with_their_term():
    listed = " ".join(cells[0] for cells in rows(AVOIDED))
    words = re.search(r"\((.*)\)", PRIVATE_WORDS.pattern)
    assert words is not None
    plain = [re.sub(r"\(.*?\)|\?", "", word) for word in words[1].replace("(?!.out)", "").split("|")]
    assert [word for word in plain if word.rstrip("s") not in listed] == []
    assert [cells for cells in rows(AVOIDED) if PRIVATE_WORDS.search(cells[1])] == []
